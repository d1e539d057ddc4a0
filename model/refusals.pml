/*
 * The refusals of docs/revocation.md: a key whose creation has been answered is not answered 401 by an instance that is still
 * connected to an abandoned primary. That is 503, until the instance has found the new one. And what is looked up to prove a
 * refusal may be found: then the key is accepted, which must not be once its DELETE has been answered.
 *
 * scripts/model searches every interleaving of this model, and of copies that lack one of its rules each, where a
 * violation has to be found, as with model/revocation.pml.
 *
 * One key is created, at some time, and perhaps revoked. There are
 *   a failover    to a synchronous standby (server 1). Server 0, abandoned, goes on answering reads. What it commits from then
 *                 on nobody has confirmed, but it shows it: that the key is revoked, and heartbeats;
 *   an instance   that checks the key, and runs rounds. After the failover each statement may be executed by either server.
 *
 * Asserted is that a check which began after the creation was answered ends with a 401 only if a DELETE was committed on the
 * primary; and that no lookup of a round accepts the key for a check which began after the DELETE was answered. Not asserted is
 * that a check ends at all, nor what the pool's lookups accept: model/revocation.pml has that.
 *
 * What is left out, and why nothing is lost by it:
 *   The lease, and rows in memory    decide what is accepted otherwise. A row in memory that says revoked counts for as much as one
 *                 that the pool reads now: it is what the pool read once.
 *   Two checks at once    They wait for the same round.
 *   The log       A round applies it, which nothing here depends on.
 *   Asynchronous promotion, restoring    The new database may lack a key that was answered: nothing can be asserted of it.
 */

/* Steps of a check. */
#define BEGUN   1
#define UNKNOWN 2 /* the pool's connections don't show a valid key */
#define JOINED  3 /* a round that began after it did */
#define WRITES  4 /* accepted; the transaction of its write has the condition that the key is valid */

/* Steps of a round. */
#define RESTING 0
#define BEFORE  1
#define BEATEN  2 /* the heartbeat is committed */
#define LOOKED  3 /* the key was looked up */

/* Steps of the creation, and of DELETE. */
#define COMMITTED 1
#define DONE      2
#define LOST      3 /* DELETE's commit was seen, but not confirmed, and the standby doesn't have it */

typedef server {
	bit has;  /* the key */
	bit gone; /* its row says revoked */
}

server s[2];
bit failedOver;
byte creating;
byte deleting;

byte check;
bit exists;  /* it began after the creation was answered */
bit revoked; /* after DELETE was */

byte round;
bit on;     /* the server of its heartbeat */
bit found;  /* the key, and valid */

#define primary    (failedOver)
#define valid(n)   (s[n].has && !s[n].gone)
#define reaches(n) ((n) == 0 || failedOver)

#ifdef REACH
c_decl {
	static unsigned char told[32];
	static void reach(int n, const char *what) { if (!told[n]) { told[n] = 1; printf("reached: %s\n", what); } }
}
#define reached(n, what) c_code { reach(n, what); }
#else
#define reached(n, what) skip
#endif

#ifdef BEAT_UNSYNCED
#define confirmed(n) true
#else
#define confirmed(n) ((n) == primary)
#endif

inline end() {
	check = 0; exists = 0; revoked = 0
}

inline refuse() {
	assert(!exists || deleting != 0);
	end()
}

/* A round that ends. Who waits for it, but has no answer yet, gets a 503. */
inline rest() {
	if :: check == JOINED -> end() :: else fi;
	round = RESTING; on = 0; found = 0
}

inline beat(n) {
	on = n; round = BEATEN
}

inline lookUp(n) {
	found = valid(n); round = LOOKED
}

inline askPool(n) {
	if
	:: valid(n) -> check = WRITES
	:: else ->
		if :: n != primary && exists && deleting == 0 -> reached(1, "a created key that the abandoned server doesn't show") :: else fi;
#if defined(POOL_ALONE)
		refuse()
#elif defined(ROW_ALONE)
		if :: s[n].has -> refuse() :: else -> check = UNKNOWN fi
#else
		check = UNKNOWN
#endif
	fi
}

/* The condition fails where the pool leads to an abandoned server now. The caller is checked again. */
inline write(n) {
	if
	:: valid(n) -> end()
	:: else ->
		if :: exists && deleting == 0 -> reached(2, "a write ended by its condition, on the abandoned server") :: else fi;
#ifdef WRITE_REFUSED
		refuse()
#else
		check = UNKNOWN
#endif
	fi
}

proctype process() {
	do
	:: d_step { check == 0 -> check = BEGUN; exists = (creating == DONE); revoked = (deleting == DONE) }
	:: d_step { check == BEGUN -> askPool(0) }
	:: d_step { check == BEGUN && failedOver -> askPool(1) }
	:: d_step { check == WRITES -> write(0) }
	:: d_step { check == WRITES && failedOver -> write(1) }
	:: d_step { check == WRITES -> end() }

	/* A round begins, and takes those who wait. */
	:: d_step { round == RESTING ->
			round = BEFORE;
			if :: check == UNKNOWN -> check = JOINED :: else fi }
#ifdef JOIN_ANY
	:: d_step { round != RESTING && check == UNKNOWN -> check = JOINED }
#endif
#ifdef LOOK_BEFORE
	:: d_step { round == BEFORE -> found = valid(0); round = BEATEN; on = 0 }
	:: d_step { round == BEFORE && failedOver -> found = valid(1); round = BEATEN; on = 1 }
	:: d_step { round == BEATEN && confirmed(0) -> round = LOOKED }
	:: d_step { round == BEATEN && failedOver -> round = LOOKED }
#else
	:: d_step { round == BEFORE && confirmed(0) -> beat(0) }
	:: d_step { round == BEFORE && failedOver -> beat(1) }
	/* On a server that shows the heartbeat: it is asked for both at once. */
	:: d_step { round == BEATEN && on == 0 -> lookUp(0) }
	:: d_step { round == BEATEN && on == 1 -> lookUp(1) }
#ifdef LOOK_ELSEWHERE
	:: d_step { round == BEATEN -> lookUp(0) }
#endif
#endif
	:: d_step { round == LOOKED ->
			if
			:: check == JOINED && found ->
				if :: exists -> reached(3, "a key accepted by a round, after the pool didn't show it") :: else fi;
				assert(!revoked);
				check = WRITES
			:: check == JOINED && !found ->
				if
				:: revoked -> reached(7, "a revoked key refused")
				:: failedOver -> reached(4, "a refusal after the failover")
				:: else -> reached(5, "a refusal")
				fi;
				refuse()
			:: else
			fi;
			rest() }
	/* It fails. */
	:: d_step { round != RESTING ->
			if :: check == JOINED && exists && deleting == 0 -> reached(6, "no answer, for the round failed") :: else fi;
			rest() }
	od
}

proctype database() {
	do
	:: d_step { creating == 0 -> s[primary].has = 1; creating = COMMITTED }
	:: d_step { creating == COMMITTED -> creating = DONE }
	/* The standby has the key, or its creation was not confirmed, and is tried again. So with DELETE. */
	:: d_step { !failedOver -> failedOver = 1; s[1].has = s[0].has; s[1].gone = s[0].gone }
	:: d_step { !failedOver && creating == COMMITTED -> failedOver = 1; creating = 0 }
	:: d_step { !failedOver && deleting == COMMITTED -> failedOver = 1; s[1].has = 1; deleting = LOST }
	/* DELETE, answered after its commit was confirmed. One that was not is tried again. */
	:: d_step { (deleting == 0 || deleting == LOST) && creating == DONE -> s[primary].gone = 1; deleting = COMMITTED }
	:: d_step { deleting == COMMITTED && s[primary].gone -> deleting = DONE }
	/* One on the abandoned server whose wait for the standby was cancelled. */
	:: d_step { failedOver && s[0].has && !s[0].gone -> s[0].gone = 1 }
	od
}

init {
	atomic {
		run database();
		run process();
	}
}
