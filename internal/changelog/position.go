package changelog

import (
	"fmt"

	"github.com/google/uuid"

	"accesskeys/internal/postgres"
)

// Position is a place in the log of changes. The number says how far, the entry which log: a server that was failed over
// may go on to use the same numbers for other changes.
type Position struct {
	Number int64
	Entry  uuid.UUID
}

// Noun is a table whose changes are logged.
type Noun string

// The nouns.
const (
	NounAccessKeys         Noun = "accesskeys" // its subjects are token hashes, all others' are ids
	NounAgents             Noun = "agents"
	NounCustomers          Noun = "customers"
	NounServiceAccounts    Noun = "service_accounts"
	NounServiceAccountKeys Noun = "service_account_keys"
)

// Change is an entry of the log.
type Change struct {
	Position Position
	Noun     Noun
	Subjects [][]byte // nil: more than can be named
}

// ErrOtherLog means that the database doesn't hold a position which was read from it before: it is not the same one any
// more, or so much has changed since that the position is no longer kept. It is an ErrUnavailable.
var ErrOtherLog = fmt.Errorf("%w: its log of changes is another one", postgres.ErrLeftBehind)

// ErrNoHead means that somebody has emptied the log of changes. It is an ErrUnavailable.
var ErrNoHead = fmt.Errorf("%w: its log of changes has no head", postgres.ErrUnavailable)
