package api

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"sigs.k8s.io/yaml"

	document "accesskeys/api"
	"accesskeys/internal/authcache"
	"accesskeys/internal/web"
)

type messageJSON struct {
	Message string `json:"message"`
}

// ping answers as VoIPBIN's does.
func (*Server) ping(*http.Request) (messageJSON, error) {
	return messageJSON{"pong"}, nil
}

// healthz says that the process lives; it asks nobody else, so that a database in trouble gets no server restarted.
func (*Server) healthz(*http.Request) (messageJSON, error) {
	return messageJSON{"ok"}, nil
}

// readyz says whether the server can serve: the database is reachable and migrated and lets it check credentials, and the
// server is not on its way out.
func (s *Server) readyz(r *http.Request) (answer messageJSON, err error) {
	if s.kit.Draining() {
		return answer, web.Unavailable("The server is shutting down.")
	}
	ctx, cancel := context.WithTimeout(r.Context(), readyTimeout)
	defer cancel()
	if err := s.store.DB.Ready(ctx); err != nil {
		return answer, err
	}
	err = s.cache.Ready(ctx)
	if trouble, ok := errors.AsType[*authcache.TroubleError](err); ok {
		return answer, web.Unavailable(trouble.Error())
	}
	if err != nil {
		return answer, err
	}
	message := "ready"
	if h := s.cache.Holder(); h != nil {
		// The server is as ready as any other: it is a person who has to act.
		message = fmt.Sprintf("ready, but nothing can be revoked until the transaction of pid %d (%q, since %s) ends", h.PID, h.Application,
			h.Since.UTC().Format(time.RFC3339))
	}
	return messageJSON{message}, nil
}

func (*Server) openapiYAML(w http.ResponseWriter, _ *http.Request) error {
	web.WriteBody(w, http.StatusOK, "application/yaml", document.OpenAPI)
	return nil
}

func (*Server) openapiJSON(w http.ResponseWriter, _ *http.Request) error {
	body, err := documentJSON()
	if err != nil {
		return err
	}
	web.WriteBody(w, http.StatusOK, "application/json", body)
	return nil
}

// documentJSON converts the document at the first request for it: most servers never get one.
var documentJSON = sync.OnceValues(func() ([]byte, error) {
	body, err := yaml.YAMLToJSON(document.OpenAPI)
	return append(body, '\n'), err
})
