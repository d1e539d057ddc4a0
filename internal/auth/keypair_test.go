package auth

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"
)

// block is a PEM block of this type.
func block(kind string, der []byte) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
}

// publicPEM is a key as a caller would bring it.
func publicPEM(t *testing.T, key crypto.PublicKey) string {
	t.Helper()
	return block("PUBLIC KEY", must(x509.MarshalPKIXPublicKey(key))(t))
}

// rsaOf is an RSA public key of this length that nobody has the private half of: making real ones of 8192 bits takes
// minutes, and their primes are not looked at.
func rsaOf(bits, exponent int) *rsa.PublicKey {
	n := new(big.Int).Lsh(big.NewInt(1), uint(bits-1))
	return &rsa.PublicKey{N: n.Add(n, big.NewInt(12345)), E: exponent}
}

func curveKey(t *testing.T, curve elliptic.Curve) *ecdsa.PrivateKey {
	t.Helper()
	return must(ecdsa.GenerateKey(curve, rand.Reader))(t)
}

// POST keys with no body makes a pair (RSA 2048 by default ...) ... PKCS#8 PEM. Each pair is one: what the private half signs, the public
// half verifies; it is fit by the rules for keys that callers bring, and made anew each time.
func TestKeyPairsAreOfTheirAlgorithmAndFit(t *testing.T) {
	t.Parallel()
	pairs := must(NewKeyPairs(2, time.Minute))(t)
	for _, algorithm := range Algorithms() {
		private, public, err := pairs.New(t.Context(), algorithm)
		if err != nil {
			t.Fatal(err)
		}
		decoded, rest := pem.Decode([]byte(private.Reveal()))
		if decoded == nil || decoded.Type != "PRIVATE KEY" || len(decoded.Headers) != 0 || len(rest) != 0 {
			t.Fatalf("%s: the private half is not one PEM block PRIVATE KEY", algorithm)
		}
		key := must(x509.ParsePKCS8PrivateKey(decoded.Bytes))(t)
		kinds := map[Algorithm]string{RS256: "*rsa.PrivateKey", ES256: "*ecdsa.PrivateKey", EdDSA: "ed25519.PrivateKey"}
		if kind := fmt.Sprintf("%T", key); kind != kinds[algorithm] {
			t.Errorf("%s: a key of the type %s", algorithm, kind)
		}
		if k, is := key.(*rsa.PrivateKey); is && (k.N.BitLen() != 2048 || k.E != 65537 || k.Validate() != nil) {
			t.Errorf("%s: an RSA key of %d bits with exponent %d", algorithm, k.N.BitLen(), k.E)
		}
		der, err := x509.MarshalPKIXPublicKey(key.(crypto.Signer).Public())
		if err != nil || !bytes.Equal(der, public.DER) || public.Algorithm != algorithm {
			t.Errorf("%s: the halves are not one pair: %v", algorithm, err)
		}
		parsed, err := ParsePublicKey(public.PEM())
		if err != nil || parsed.Algorithm != algorithm || !bytes.Equal(parsed.DER, public.DER) {
			t.Errorf("%s: the public half, brought back: %v, %v", algorithm, parsed.Algorithm, err)
		}
		if len(public.DER) > 1024 {
			t.Errorf("%s: %d bytes do not fit into the table", algorithm, len(public.DER))
		}
		if again, _, err := pairs.New(t.Context(), algorithm); err != nil || again.Reveal() == private.Reveal() {
			t.Errorf("%s: the same pair twice, or %v", algorithm, err)
		}
	}
	if _, _, err := pairs.New(t.Context(), "HS256"); err == nil {
		t.Error("a pair for HS256 was made")
	}
}

// Finding RSA's primes takes a core for a while, so only so many pairs are made at once; who gets no turn is told to
// come back, and a turn is given back.
func TestKeyPairsAreMadeABoundedNumberAtATime(t *testing.T) {
	t.Parallel()
	if _, err := NewKeyPairs(0, time.Minute); err == nil {
		t.Error("none at once was accepted")
	}
	pairs := must(NewKeyPairs(1, time.Millisecond))(t)
	release := must(pairs.turns.take(t.Context()))(t)
	if _, _, err := pairs.New(t.Context(), EdDSA); !errors.Is(err, ErrBusy) {
		t.Errorf("beyond the bound: %v", err)
	}
	release()
	if _, _, err := pairs.New(t.Context(), EdDSA); err != nil {
		t.Errorf("after the turn was given back: %v", err)
	}
	patient := must(NewKeyPairs(1, time.Hour))(t)
	defer must(patient.turns.take(t.Context()))(t)()
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := patient.New(gone, EdDSA); !errors.Is(err, ErrBusy) {
		t.Errorf("whose caller has gone: %v", err)
	}
}

// Weak or odd keys are refused (RSA other than 2048 to 4096, exponent other than 65537, curves other than P-256 and Ed25519). The controls
// are keys at the very edge of what is fit.
func TestOnlyFitPublicKeysAreTaken(t *testing.T) {
	t.Parallel()
	edwards, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]crypto.PublicKey{
		"RSA 2048": rsaOf(2048, 65537), "RSA 2049": rsaOf(2049, 65537), "RSA 3072": rsaOf(3072, 65537), "RSA 4096": rsaOf(4096, 65537),
		"P-256": curveKey(t, elliptic.P256()).Public(), "Ed25519": edwards,
	} {
		want := map[byte]Algorithm{'R': RS256, 'P': ES256, 'E': EdDSA}[name[0]]
		text := publicPEM(t, key)
		for form, brought := range map[string]string{
			"as it is": text, "with CRLF": strings.ReplaceAll(text, "\n", "\r\n"), "with space around": "\n \t" + text + "\r\n ",
			"without its last line break": strings.TrimSpace(text),
		} {
			got, err := ParsePublicKey(brought)
			if err != nil || got.Algorithm != want || got.PEM() != text {
				t.Errorf("%s, %s: %v, %v", name, form, got.Algorithm, err)
			}
			if len(got.DER) > 1024 {
				t.Errorf("%s: %d bytes do not fit into the table", name, len(got.DER))
			}
		}
	}
	refuses(t, unsupportedKeys(t))
	refuses(t, unsupportedTexts(t))
}

func refuses(t *testing.T, texts map[string]string) {
	t.Helper()
	for name, text := range texts {
		got, err := ParsePublicKey(text)
		if !errors.Is(err, ErrUnsupportedKey) || got.DER != nil || got.Algorithm != "" {
			t.Errorf("%s: %v, %v", name, got.Algorithm, err)
		}
		if err != nil && err.Error() != ErrUnsupportedKey.Error() {
			t.Errorf("%s: the error says more than it should: %v", name, err)
		}
	}
}

// unsupportedKeys are well-formed keys of the wrong kinds.
func unsupportedKeys(t *testing.T) map[string]string {
	t.Helper()
	made := map[string]string{"X25519": publicPEM(t, must(ecdh.X25519().GenerateKey(rand.Reader))(t).PublicKey())}
	for _, bits := range []int{1024, 1536, 2047, 4097, 8192} {
		made[fmt.Sprintf("RSA %d", bits)] = publicPEM(t, rsaOf(bits, 65537))
	}
	for _, exponent := range []int{1, 3, 17, 65536, 65539} {
		made[fmt.Sprintf("exponent %d", exponent)] = publicPEM(t, rsaOf(2048, exponent))
	}
	for _, curve := range []elliptic.Curve{elliptic.P224(), elliptic.P384(), elliptic.P521()} {
		made[curve.Params().Name] = publicPEM(t, curveKey(t, curve).Public())
	}
	// What Go can't make is written by hand: SubjectPublicKeyInfo of an algorithm with parameters.
	info := func(algorithm asn1.ObjectIdentifier, parameters any, key []byte) string {
		identifier := pkix.AlgorithmIdentifier{Algorithm: algorithm}
		if parameters != nil {
			identifier.Parameters = asn1.RawValue{FullBytes: must(asn1.Marshal(parameters))(t)}
		}
		return block("PUBLIC KEY", must(asn1.Marshal(struct {
			Algorithm pkix.AlgorithmIdentifier
			Key       asn1.BitString
		}{identifier, asn1.BitString{Bytes: key, BitLength: 8 * len(key)}}))(t))
	}
	unhex := func(s string) []byte { return must(hex.DecodeString(s))(t) }
	ecPublicKey := asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}
	ed25519ID := asn1.ObjectIdentifier{1, 3, 101, 112}
	made["secp256k1"] = info(ecPublicKey, asn1.ObjectIdentifier{1, 3, 132, 0, 10}, unhex("04"+
		"79be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798483ada7726a3c4655da4fbfc0e1108a8fd17b448a68554199c47d08ffb10d4b8"))
	p256 := asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 7}
	made["P-256, not on the curve"] = info(ecPublicKey, p256, append([]byte{4}, bytes.Repeat([]byte{7}, 64)...))
	made["P-256, at infinity"] = info(ecPublicKey, p256, []byte{0})
	made["P-256, cut"] = info(ecPublicKey, p256, append([]byte{4}, make([]byte, 63)...))
	made["Ed448"] = info(asn1.ObjectIdentifier{1, 3, 101, 113}, nil, make([]byte, 57))
	made["Ed25519, cut"] = info(ed25519ID, nil, make([]byte, 31))
	made["Ed25519, longer"] = info(ed25519ID, nil, make([]byte, 33))
	type rsaKey struct{ N, E *big.Int }
	n, e := rsaOf(2048, 65537).N, big.NewInt(65537)
	made["RSA-PSS"] = info(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 10}, nil, must(asn1.Marshal(rsaKey{n, e}))(t)) // RFC 4055
	made["RSA, negative"] = info(asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}, asn1.NullRawValue,
		must(asn1.Marshal(rsaKey{new(big.Int).Neg(n), e}))(t))
	domain := struct{ P, Q, G *big.Int }{rsaOf(2048, 3).N, rsaOf(256, 3).N, big.NewInt(4)}
	made["DSA"] = info(asn1.ObjectIdentifier{1, 2, 840, 10040, 4, 1}, domain, must(asn1.Marshal(big.NewInt(16)))(t))

	// The points of small order, in every encoding that Go reads: the order is 1, 2, 4, 4 and four times 8.
	for _, point := range []string{
		"0100000000000000000000000000000000000000000000000000000000000000", "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
		"0000000000000000000000000000000000000000000000000000000000000000", "0000000000000000000000000000000000000000000000000000000000000080",
		"26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05", "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
		"c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a", "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
		"0100000000000000000000000000000000000000000000000000000000000080", "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
		"edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
		"eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f", "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
	} {
		made["Ed25519 of small order, "+point[:4]+"..."+point[60:]] = info(ed25519ID, nil, unhex(point))
	}
	return made
}

// unsupportedTexts hold a key that would be fit, but not as one PEM block PUBLIC KEY and nothing else.
func unsupportedTexts(t *testing.T) map[string]string {
	t.Helper()
	private := must(rsa.GenerateKey(rand.Reader, 2048))(t)
	good := publicPEM(t, private.Public())
	der, _ := pem.Decode([]byte(good))
	pkcs8 := must(x509.MarshalPKCS8PrivateKey(private))(t)
	ec := curveKey(t, elliptic.P256())
	sec1 := must(x509.MarshalECPrivateKey(ec))(t)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	certificate := must(x509.CreateCertificate(rand.Reader, template, template, ec.Public(), ec))(t)
	must(ParsePublicKey(good))(t) // the control
	return map[string]string{
		"nothing": "", "blank": " \n", "no PEM": "ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAA", "DER": string(der.Bytes), "half": good[:len(good)/2],
		"SSH2's":                "---- BEGIN SSH2 PUBLIC KEY ----\nAAAA\n---- END SSH2 PUBLIC KEY ----\n",
		"without its last line": strings.Replace(good, "-----END PUBLIC KEY-----", "", 1),
		"headers":               strings.Replace(good, "-----\n", "-----\nProc-Type: 4,ENCRYPTED\n\n", 1),
		"in lower case":         strings.ReplaceAll(good, "PUBLIC KEY", "public key"),
		"text before":           "my key:\n" + good, "text after": good + "x", "NUL after": good + "\x00", "a no-break space after": good + "\u00a0",
		"a byte order mark before": "\ufeff" + good, "two blocks": good + good,
		"a broken block before":       "-----BEGIN PUBLIC KEY-----\n!\n-----END PUBLIC KEY-----\n" + good,
		"a broken private key before": "-----BEGIN PRIVATE KEY-----\n!\n-----END PRIVATE KEY-----\n" + good,
		"a private key, then this":    block("PRIVATE KEY", pkcs8) + good, "this, then a private key": good + block("PRIVATE KEY", pkcs8),
		"a private key": block("PRIVATE KEY", pkcs8), "a private key, renamed": block("PUBLIC KEY", pkcs8),
		"a private key of PKCS #1": block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(private)),
		"a private key of SEC 1":   block("EC PRIVATE KEY", sec1),
		"PKCS #1":                  block("RSA PUBLIC KEY", x509.MarshalPKCS1PublicKey(&private.PublicKey)),
		"PKCS #1 under this name":  block("PUBLIC KEY", x509.MarshalPKCS1PublicKey(&private.PublicKey)),
		"a certificate":            block("CERTIFICATE", certificate), "a certificate, renamed": block("PUBLIC KEY", certificate),
		"a byte more inside": block("PUBLIC KEY", append(bytes.Clone(der.Bytes), 0)),
		"a byte less inside": block("PUBLIC KEY", der.Bytes[:len(der.Bytes)-1]),
		"an empty block":     block("PUBLIC KEY", nil), "another name": block("PUBLIC  KEY", der.Bytes), "OpenSSH's": block("OPENSSH PUBLIC KEY", der.Bytes),
	}
}
