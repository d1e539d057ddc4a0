package main

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"accesskeys/internal/pgtest"
	"accesskeys/internal/secret"
)

// odd are values of settings that an operator may have given a database or a role, for whatever else uses it. Each of a setting's
// values is tried together with those of the others.
var odd = map[string][]string{
	"datestyle": {"German", "'SQL, DMY'", "Postgres, MDY"}, "intervalstyle": {"iso_8601", "sql_standard", "postgres_verbose"},
	"timezone": {"'Asia/Kolkata'", "'Pacific/Apia'"}, "client_encoding": {"LATIN1", "SJIS"}, "default_text_search_config": {"'pg_catalog.german'"},
	"extra_float_digits": {"-15", "3"}, "lc_messages": {"'C'"}, "lc_monetary": {"'C'"}, "lc_numeric": {"'C'"}, "lc_time": {"'C'"},
	"bytea_output": {"escape"}, "check_function_bodies": {"off"}, "client_min_messages": {"debug5", "error", "log"},
	"default_table_access_method": {"heap"}, "default_toast_compression": {"pglz"}, "default_transaction_deferrable": {"on"},
	"default_transaction_isolation": {"serializable", "'repeatable read'"}, "idle_in_transaction_session_timeout": {"'3s'"},
	"idle_session_timeout": {"'2s'"}, "lock_timeout": {"'3s'"}, "statement_timeout": {"'3s'"}, "row_security": {"off"},
	"session_replication_role": {"replica", "local"}, "xmlbinary": {"hex"}, "xmloption": {"document"}, "password_encryption": {"md5"},
	"deadlock_timeout": {"'10ms'"}, "transform_null_equals": {"on"}, "array_nulls": {"off"}, "backslash_quote": {"off", "on"}, "escape_string_warning": {"off"},
	"lo_compat_privileges": {"on"}, "quote_all_identifiers": {"on"}, "standard_conforming_strings": {"off"}, "synchronize_seqscans": {"off"},
	"synchronous_commit": {"off", "local"}, "plan_cache_mode": {"force_generic_plan", "force_custom_plan"}, "jit": {"on"}, "enable_indexscan": {"off"},
	"enable_seqscan": {"off"}, "work_mem": {"'64kB'"}, "default_statistics_target": {"1"}, "track_activities": {"off"},
}

// meant are settings that keep their meaning, or can't change what a statement does.
var meant = map[string]string{
	"search_path": "where the tables are", "default_tablespace": "where new tables are stored", "temp_tablespaces": "no temporary tables",
	"default_transaction_read_only": "the operator wants no writes: the server is not ready",
	"transaction_isolation":         "of one transaction", "transaction_read_only": "of one transaction", "transaction_deferrable": "of one transaction",
	"restrict_nonsystem_relation_kind": "of dumps", "dynamic_library_path": "loads nothing", "local_preload_libraries": "the operator's libraries",
	"session_preload_libraries": "the operator's libraries", "exit_on_error": "ends sessions, which are made anew", "wal_sender_timeout": "of replication",
	"gin_fuzzy_search_limit": "no such index", "gin_pending_list_limit": "no such index", "timezone_abbreviations": "no abbreviations",
	"extension_destdir": "makes no extensions", "event_triggers": "the operator's", "transaction_timeout": "as statement_timeout", "createrole_self_grant": "makes no roles",
}

// Nothing that a database or a role sets for its sessions changes what the service does: it is ready and stays so, and what it answers looks
// the same.
func TestSettingsOfTheDatabaseDontMatter(t *testing.T) {
	t.Parallel()
	for round, more := range []string{"", "", "", "&default_query_exec_mode=exec", "&default_query_exec_mode=simple_protocol"} {
		t.Run(fmt.Sprint(round, more), func(t *testing.T) {
			t.Parallel()
			database := pgtest.Migrated(t)
			quoted := sql(t, database, `SELECT quote_ident(current_database())`)
			if more != "" {
				round = 0 // once for each
			}
			for setting, values := range odd {
				if sql(t, database, `SELECT count(*) FROM pg_settings WHERE lower(name) = $1`, setting) == "1" {
					sql(t, database, `ALTER DATABASE `+quoted+` SET `+setting+` = `+values[round%len(values)])
				}
			}
			base := served(t, secret.New(database.Reveal()+more), nil).base()
			for end := time.Now().Add(4 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
				call(t, "GET", base+"/readyz", "", "").wants(t, 200)
			}
			worksAsUsual(t, base)
		})
	}
}

func worksAsUsual(t *testing.T, base string) {
	t.Helper()
	jwt := login(t, base, testUsername, testPassword).wants(t, 200)["token"].(string)
	made := call(t, "POST", base+"/v1.0/accesskeys", jwt, `{"name":"naïve \\ 'é' 語","detail":"\\x41"}`).wants(t, 200)
	token, id := made["token"].(string), made["id"].(string)
	call(t, "GET", base+"/v1.0/me", token, "").wants(t, 200)
	shown := call(t, "GET", base+"/v1.0/accesskeys/"+id, jwt, "").wants(t, 200)
	timestamp := regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z$`)
	for _, name := range []string{"tm_create", "tm_update", "tm_expire", "tm_delete"} {
		if s, _ := shown[name].(string); !timestamp.MatchString(s) || s != made[name] {
			t.Errorf("%s is %v, and was %v", name, shown[name], made[name])
		}
	}
	if shown["name"] != `naïve \ 'é' 語` || shown["detail"] != `\x41` {
		t.Errorf("it is %v", shown)
	}
	page := call(t, "GET", base+"/v1.0/accesskeys?page_size=1", jwt, "").wants(t, 200)
	if call(t, "GET", base+"/v1.0/accesskeys?page_token="+page["next_page_token"].(string), jwt, "").wants(t, 200)["result"] == nil {
		t.Error("there is no next page")
	}
	call(t, "PUT", base+"/v1.0/accesskeys/"+id, jwt, `{"name":"m"}`).wants(t, 200)
	call(t, "DELETE", base+"/v1.0/accesskeys/"+id, jwt, "").wants(t, 200)
	call(t, "GET", base+"/v1.0/me", token, "").refuses(t, 401, "INVALID_CREDENTIALS")
}

// Each setting that a role or a database can have is tried or known to keep its meaning. What only tunes, logs or debugs is not looked at.
func TestEverySettingOfASessionIsDecided(t *testing.T) {
	t.Parallel()
	names := sql(t, pgtest.Migrated(t), `SELECT string_agg(lower(name), ' ' ORDER BY name) FROM pg_settings WHERE context IN ('user', 'superuser')
		AND category NOT SIMILAR TO '(Query Tuning|Resource Usage|Reporting and Logging|Statistics|Developer Options|Customized Options|Autovacuum|Vacuuming)%'
		AND name NOT LIKE 'vacuum\_%' AND name NOT LIKE 'tcp\_%' AND name NOT LIKE 'wal\_%' AND name NOT LIKE 'commit\_%'
		AND name <> 'client_connection_check_interval'`)
	decided := slices.Concat(slices.Collect(maps.Keys(odd)), slices.Collect(maps.Keys(meant)))
	for name := range strings.FieldsSeq(names) {
		if !slices.Contains(decided, name) {
			t.Errorf("%s is not decided", name)
		}
	}
}
