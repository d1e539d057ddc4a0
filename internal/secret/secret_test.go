package secret_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"accesskeys/internal/secret"
)

func TestASecretIsNeverShown(t *testing.T) {
	t.Parallel()
	const plain = "vb_canary0canary0canary0canary0cana"
	v := secret.New(plain)
	holder := struct {
		Field secret.Value
		Ptr   *secret.Value
	}{v, &v}

	shown := map[string]string{}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%T"} {
		shown["value "+verb] = fmt.Sprintf(verb, v)
		shown["pointer "+verb] = fmt.Sprintf(verb, &v)
		shown["holder "+verb] = fmt.Sprintf(verb, holder)
	}
	shown["error"] = fmt.Errorf("wrapping %v", v).Error()
	for name, value := range map[string]any{"value": v, "holder": holder, "map": map[string]any{"v": v}} {
		encoded, err := json.Marshal(value)
		if err != nil {
			t.Fatal(err)
		}
		shown["json "+name] = string(encoded)
		var text, structured bytes.Buffer
		slog.New(slog.NewTextHandler(&text, nil)).Info("line", "value", value)
		slog.New(slog.NewJSONHandler(&structured, nil)).Info("line", "value", value)
		shown["slog text "+name], shown["slog json "+name] = text.String(), structured.String()
	}
	for how, out := range shown {
		if strings.Contains(out, "canary") || strings.Contains(out, fmt.Sprintf("%x", "canary")) {
			t.Errorf("%s shows the secret: %s", how, out)
		}
	}
	if got := v.Reveal(); got != plain {
		t.Errorf("Reveal() = %q, want %q", got, plain)
	}
}
