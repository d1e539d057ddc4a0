package store

import (
	"time"

	"github.com/google/uuid"
)

// Cursor is a place in a list that is ordered by tm_create, then id, both descending. What lies after it has an older
// tm_create, or the same and a lower id; so a list that is read cursor by cursor misses and repeats nothing that was
// there throughout, whatever else comes and goes.
type Cursor struct {
	TmCreate time.Time
	ID       uuid.UUID
}

// Start is the cursor that every row comes after.
func Start() Cursor { return Cursor{TmCreate: Never(), ID: uuid.Max} }

// Cursor is the access key's place in lists.
func (k AccessKey) Cursor() Cursor { return Cursor{TmCreate: k.TmCreate, ID: k.ID} }

// Cursor is the agent's place in lists.
func (a Agent) Cursor() Cursor { return Cursor{TmCreate: a.TmCreate, ID: a.ID} }

// Cursor is the customer's place in lists.
func (c Customer) Cursor() Cursor { return Cursor{TmCreate: c.TmCreate, ID: c.ID} }

// Cursor is the service account's place in lists.
func (a ServiceAccount) Cursor() Cursor { return Cursor{TmCreate: a.TmCreate, ID: a.ID} }

// Cursor is the key's place in lists.
func (k ServiceAccountKey) Cursor() Cursor { return Cursor{TmCreate: k.TmCreate, ID: k.ID} }
