// Package api holds the service's OpenAPI document, embedded into the binary.
package api

import _ "embed"

// OpenAPI is api/openapi.yaml: the truth for shapes, reasons and examples.
//
//go:embed openapi.yaml
var OpenAPI []byte
