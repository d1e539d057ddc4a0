package mail

import "crypto/x509"

// Trust makes these certificates the ones that are believed.
func (s *SMTP) Trust(roots *x509.CertPool) { s.roots = roots }
