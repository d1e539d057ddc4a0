package authcache

import (
	"slices"
	"sync/atomic"
	"time"

	"github.com/google/uuid"

	"accesskeys/internal/store"
)

// accessKeyRow is an access key as it is remembered, of which there may be millions: in a third of the memory, and with two
// pointers for the garbage collector to follow instead of ten.
type accessKeyRow struct {
	checked
	noted                            atomic.Int64 // the last use that NoteUse has noted, in microseconds since 1970
	id, customerID                   uuid.UUID
	agentID                          uuid.UUID
	serviceAccountID                 uuid.UUID // that made it, else the nil UUID
	bound                            bool      // to agentID
	text                             string    // name, detail and token prefix
	name, detail                     int       // their lengths
	roles                            []string
	expire, create, update, deletion int64 // microseconds since 1970
}

// adminRoles are those of nearly every key, shared.
var adminRoles = []string{"customer_admin"}

func newAccessKeyRow(c store.AccessKeyCredential) *accessKeyRow {
	row := &accessKeyRow{
		id: c.ID, customerID: c.CustomerID, bound: c.AgentID != nil,
		text: c.Name + c.Detail + c.TokenPrefix, name: len(c.Name), detail: len(c.Detail), roles: c.Roles,
		expire: c.TmExpire.UnixMicro(), create: c.TmCreate.UnixMicro(), update: c.TmUpdate.UnixMicro(), deletion: c.TmDelete.UnixMicro(),
	}
	if row.bound {
		row.agentID = *c.AgentID
	}
	if c.ServiceAccount != nil {
		row.serviceAccountID = c.ServiceAccount.ID
	}
	if slices.Equal(row.roles, adminRoles) {
		row.roles = adminRoles
	}
	return row
}

// same reports whether both are the same row of the database.
func (row *accessKeyRow) same(other *accessKeyRow) bool {
	return row.id == other.id && row.customerID == other.customerID && row.bound == other.bound && row.agentID == other.agentID &&
		row.serviceAccountID == other.serviceAccountID && row.text == other.text && row.name == other.name && row.detail == other.detail &&
		slices.Equal(row.roles, other.roles) && row.expire == other.expire && row.create == other.create &&
		row.update == other.update && row.deletion == other.deletion
}

// credential is what the row was made of, but for the rows that it rests on and the time.
func (row *accessKeyRow) credential() (c AccessKeyCredential) {
	c.ID, c.CustomerID = row.id, row.customerID
	if row.bound {
		c.AgentID = &row.agentID
	}
	c.Name, c.Detail, c.TokenPrefix = row.text[:row.name], row.text[row.name:row.name+row.detail], row.text[row.name+row.detail:]
	c.TmExpire, c.TmCreate = time.UnixMicro(row.expire), time.UnixMicro(row.create)
	c.TmUpdate, c.TmDelete = time.UnixMicro(row.update), time.UnixMicro(row.deletion)
	c.Roles, c.noted = row.roles, &row.noted
	return c
}

// bytes is about what the row takes.
func (row *accessKeyRow) bytes() int {
	n := 240 + len(row.text)
	if len(row.roles) > 0 && &row.roles[0] != &adminRoles[0] {
		n += rolesBytes(row.roles)
	}
	return n
}
