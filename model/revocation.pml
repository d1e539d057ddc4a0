/*
 * The revocation protocol of docs/revocation.md, its first promise: once DELETE has answered 200, no instance accepts the key.
 * The second promise is in model/writes.pml, refusals are in model/refusals.pml.
 *
 * scripts/model searches every interleaving of this model, and of copies that lack one of its rules each
 * (-DNO_LEASE and so on, see the script), where a violation has to be found.
 *
 * One key is watched. What happens to it:
 *   DELETE        appends the entry GONE to the log, commits, waits, answers;
 *   another change appends the entry OTHER, before, after or between DELETE's steps;
 *   a failover    to a synchronous standby (server 1). Server 0, abandoned, goes on answering reads. What it commits from
 *                 then on nobody has confirmed, but it shows it: the entry STRAY, and heartbeats;
 *   an instance   runs rounds, checks the key, is paused anywhere (a step may be as late as it likes), loses the database
 *                 (a step that asks it may fail, with or without its effect), crashes and begins anew. After the failover
 *                 each of its connections may lead to either server.
 *
 * Other searches have other faults:
 *
 *   -DANEW        The tables of the log begin anew: position 0 again, with another entry (FRESH). The list of instances keeps
 *                 its rows, with their acknowledgements of the old log.
 *                 Assumed: whoever empties the list, too, keeps revocations away until every lease of before has ended. An
 *                 instance that is not in the list is not waited for. (-DEMPTIED)
 *   -DASYNC       The promotion is asynchronous: server 1 may lack the latest commits, and server 0 lives and confirms what is
 *                 committed on it. The address has moved, so that new connections lead to server 1. DELETE is a request to
 *                 instance 0 that commits on server 1, while that instance's feed may linger on server 0. A feed that has come
 *                 to server 1 stays there; any of its statements may be the first there, as behind a pooler in transaction
 *                 mode. (A DELETE that commits on server 0 is undone, as are all commits there.)
 *                 An instance lingers until it has ended a round on server 1. Assumed: if any instance lingers, the one
 *                 that answers DELETE does. One that lingers alone goes on accepting, as in -DNO_TEST, and only fencing
 *                 the old primary helps. With -DOTHERS DELETE is a request to another instance, and answered only once
 *                 instance 0 doesn't linger: all that is assumed of it.
 *   -DRESTORE     There is no DELETE. The database is replaced by an earlier state of itself, without the key and perhaps without
 *                 OTHER; its epoch tells. Asserted: the key is not accepted by a check that begins after the instance has
 *                 applied a reading of the log from after the restore. Until then it may be.
 *   -DELSEWHERE   The same, but the earlier state is server 1, the address has moved, and server 0 lives. Whoever connects the
 *                 feed anew connects the pool anew.
 *   -DBACKGROUND  Rows in memory are read again in the background. The key is revoked by DELETE, or by somebody without the
 *                 log. Of the latter, asserted is that the key is not accepted by a check that begins after such a reading, begun
 *                 after the change, has been judged, with no reading from before under way; and that nothing else is reported
 *                 as a change without the log. That the reading is made before a row is too old is about time, and not modelled.
 *                 A change without the log, and then a failover, is left out (-DONLY_LOGGED): what is not in the log can't be
 *                 missed on the abandoned server.
 *
 * What is left out, and why nothing is lost by it:
 *   Time      A lease is not a number but alive or over, and may end at any moment. DELETE's wait by time may end once
 *             every lease that began before its commit is over, among the instances whose lease length it had read. That
 *             is all that a wait of bound * 1.02 + 10 ms gives, and it doesn't need any order between two leases' ends.
 *   NOTIFY    A round may begin at any moment; none has to. Timeliness is never used.
 *   Two checks at once    Only one that began after the answer can break the promise. Whatever earlier ones did
 *             to it, they did by the cache, and by the read that they left behind: one at a time, that may take for ever.
 *   Two rounds at once    A process has one loop that reads the log and commits heartbeats.
 *   A second instance, with the failover    What instances have in common is the database. One more makes DELETE wait for
 *             more and does nothing else to the first; a search of two without the failover makes sure that DELETE
 *             counts every one. The second checks nothing there, because nobody reads what that would change.
 *   Other keys    An entry of another key's is OTHER.
 *   The row of a crashed process    It can only make DELETE wait longer, so it goes with the process.
 *   A fresh id, for an instance whose row is locked    is a heartbeat, and one more row to wait for, which is left out as that of a
 *             crashed process is. That locked rows are not removed only leaves out removals.
 *   A commit that only the standby has    is one made on server 1 after the failover, whose answer was lost.
 *   The log's oldest rows, removed    An instance that is so far behind empties its cache, as after a failover.
 *   The epoch, where there is no restore    Another one makes an instance forget more.
 *   A refusal    can't break the promise, in memory or not. What is accepted by the lookup that proves one is in
 *             model/refusals.pml.
 */

/* NO_FAILOVER and NO_OTHER make a smaller model, INSTANCES=1 too. */
#ifndef INSTANCES
#define INSTANCES 2
#endif

#if defined(ELSEWHERE) && !defined(RESTORE)
#define RESTORE
#endif
#if defined(ASYNC) || defined(ELSEWHERE)
#define OLD_LIVES
#endif
#if defined(NO_FAILOVER) || defined(RESTORE)
#define NO_PROMOTION
#endif

/* Entries of the log. An entry's number stands for its UUID; its position is pos[entry]. */
#define BEGINNING 0
#define GONE      1
#define OTHER     2
#define STRAY     3
#ifdef ANEW
#define FRESH     4
#define ENTRIES   5
#else
#define ENTRIES   4
#endif

/* Steps of a round. */
#define RESTING 0
#define READ    1 /* the log was read */
#define CLOCKED 2 /* t0 is taken */
#define BEATEN  3 /* the heartbeat is committed */
#define REREAD  4 /* the log was read again */
#define APPLIED 5 /* and applied */

#ifdef READ_BEFORE
#define BEAT_AFTER  APPLIED
#define READ_AFTER  CLOCKED
#define LEASE_AFTER BEATEN
#else
#define BEAT_AFTER  CLOCKED
#define READ_AFTER  BEATEN
#define LEASE_AFTER APPLIED
#endif

/* Steps of a check. */
#define BEGUN   1 /* start is taken */
#define HIT     2 /* found in the cache, not yet tested */
#define WAITS   3 /* for a read */
#define HAS_ROW 4 /* read, not yet tested */

/* Steps of a read, of DELETE and of the other change. */
#define ASKED     1
#define ANSWERED  2
#define COMPLETE  3
#define LOCKED    1
#define COMMITTED 2
#define DONE      3
#define GIVEN_UP  6 /* a 503 */
/* What happens in DELETE's place: the database is replaced, the key is revoked without the log. */
#define RESTORED  4
#define UNLOGGED  5

typedef server {
	bit has[ENTRIES];    /* the log; entry e at position pos[e] */
	bit gone;            /* the watched key's row says revoked */
	bit row[INSTANCES];  /* the table instances: there is a row */
	byte ack[INSTANCES]; /* and its entry */
	/* What began before the row's seq last moved, and is alive. Whoever removes the row waits for that, at the least. */
	bit oldLease[INSTANCES], oldClock[INSTANCES];
}

typedef instance {
	byte applied;
	bit cached;   /* the watched key's row, saying valid */
	bit lease;    /* it is alive */
	bit clock;    /* a lease that began at the t0 of the round under way would be */

	byte round;
	byte on;      /* the server of the round's latest step */
	byte read;    /* the log's head that it saw */
	bit breaks;   /* the log didn't hold applied */
	bit tells;    /* the log held GONE, after applied */

	byte reading; /* the read of rows for a check */
	byte from;    /* applied when it began */
	byte saw;     /* the log's head in its snapshot */
	bit valid;    /* the key's row in its snapshot */

	byte check;
	bit late;     /* what makes accepting wrong had come to pass when this check began */
	byte start;   /* applied when it began, or began again */
	byte row;     /* the log's head in the snapshot that the row is from */

#ifdef OLD_LIVES
	bit moved;    /* a statement of the feed was executed by server 1 */
#endif
#ifdef ASYNC
	bit after;    /* the round's t0 is from after DELETE's commit */
#endif
#ifdef RESTORE
	bit seen;     /* the log was read after the restore, with its epoch */
	bit epoch;    /* that was applied */
#endif
#ifdef BACKGROUND
	byte reread;  /* the reading in the background */
	bit rereadOn; /* its server */
	byte rereadSaw;
	bit rereadValid;
	bit same;     /* the row has been in memory since it began */
	bit since;    /* it began after the key was revoked without the log */
	bit judged;   /* so did one that was judged */
#endif
}

server s[2];
instance p[INSTANCES];
byte pos[ENTRIES];
bit failedOver;
byte deleting;
byte changing;
bit locked;             /* the head's row, on the primary */
byte due;               /* the entry that DELETE waits for */
bit bounded[INSTANCES]; /* change_head.lease was at least this instance's when DELETE read it */
bit waitLease[INSTANCES], waitClock[INSTANCES]; /* what DELETE's wait by time waits for */
#ifdef ASYNC
bit shown;              /* server 1 shows the heartbeat of the last round that instance 0 has ended well, or a later one */
bit proved;             /* instance 0 has ended such a round on server 1, begun after DELETE's commit (OTHERS: at any time) */
#endif

#define NOWHERE 2
#ifdef EPOCH_HEAD
#define NOTHING ENTRIES /* never applied */
#endif

byte h, i; /* scratch, 0 between steps */

#define primary (failedOver)

#ifdef OLD_LIVES
#define feedOn(n, r)      (((n) == 0 && !p[r].moved) || ((n) == 1 && failedOver))
#define confirmedThere(n) true
#else
#define feedOn(n, r)      ((n) == 0 || failedOver)
#define confirmedThere(n) ((n) == primary)
#endif

#if defined(RESTORE)
#define tooLate(r) (p[r].epoch)
#elif defined(BACKGROUND)
#define tooLate(r) (deleting == DONE || p[r].judged)
#else
#define tooLate(r) (deleting == DONE)
#endif

#if !defined(RESTORE) || defined(NO_EPOCH)
#define otherEpoch(r) false
#else
#define otherEpoch(r) (p[r].seen != p[r].epoch)
#endif

#ifdef NO_LINEAGE_LOG
#define otherLineage(r) false
#else
#define otherLineage(r) (p[r].breaks)
#endif

/* With -DREACH the search says what it came by. It is the same search. */
#ifdef REACH
c_decl {
	static unsigned char told[32];
	static void reach(int n, const char *what) { if (!told[n]) { told[n] = 1; printf("reached: %s\n", what); } }
}
#define reached(n, what) c_code { reach(n, what); }
#else
#define reached(n, what) skip
#endif

/* h := the newest entry on server n */
inline head(n) {
	h = BEGINNING;
#ifdef ANEW
	if :: s[n].has[FRESH] -> h = FRESH :: else fi;
#endif
	if :: s[n].has[GONE]  && pos[GONE]  > pos[h] -> h = GONE  :: else fi;
	if :: s[n].has[OTHER] && pos[OTHER] > pos[h] -> h = OTHER :: else fi;
	if :: s[n].has[STRAY] && pos[STRAY] > pos[h] -> h = STRAY :: else fi
}

inline cameTo(n) {
#ifdef OLD_LIVES
	if :: n == 1 -> p[r].moved = 1 :: else fi
#else
	skip
#endif
}

/* What applying it takes is noted with the reading: the log itself may be another one by then. */
inline readLog(n, then) {
	head(n);
	p[r].read = h; p[r].on = n; p[r].round = then;
	p[r].breaks = !s[n].has[p[r].applied];
	p[r].tells = s[n].has[GONE] && pos[GONE] > pos[p[r].applied];
#ifdef RESTORE
#ifdef ELSEWHERE
	p[r].seen = n;
#else
	p[r].seen = (deleting == RESTORED);
#endif
#endif
	cameTo(n);
	h = 0
}

inline endLease() {
	if :: waitLease[r] -> reached(15, "the end of a lease that an answer waits for") :: else fi;
	p[r].lease = 0; waitLease[r] = 0; s[0].oldLease[r] = 0; s[1].oldLease[r] = 0
}

inline endClock() {
	p[r].clock = 0; waitClock[r] = 0; s[0].oldClock[r] = 0; s[1].oldClock[r] = 0
}

inline forget() {
	p[r].cached = 0;
#ifdef BACKGROUND
	p[r].same = 0
#endif
}

inline endReading() {
	p[r].reading = 0; p[r].from = 0; p[r].saw = 0; p[r].valid = 0
}

inline end() {
	p[r].check = 0; p[r].late = 0; p[r].start = 0; p[r].row = 0
}

inline again() {
	p[r].check = BEGUN; p[r].start = p[r].applied; p[r].row = 0
}

/* What began before counts for nothing, even if applied should come back to what it was, or be what it has read. */
inline beginAgain() {
#ifdef EPOCH_HEAD
	if :: p[r].reading == ANSWERED -> p[r].from = NOTHING :: else -> endReading() fi;
#else
	endReading();
#endif
	if :: p[r].check != 0 -> again() :: else fi
}

inline applyLog(then) {
	if
	:: otherEpoch(r) ->
		reached(16, "a cache emptied, for the epoch is another");
		forget();
		p[r].applied = p[r].read;
#ifndef EPOCH_SAME
		beginAgain();
#endif
		endLease()
	:: !otherEpoch(r) && otherLineage(r) ->
		reached(1, "a cache emptied, for applied is of another lineage");
		forget();
		p[r].applied = p[r].read;
#ifndef SAME_AGAIN
		beginAgain();
#endif
#ifndef KEEP_LEASE
		/* This may be the abandoned server, and the lease one that the other gave: applied may have gone back. */
		endLease()
#endif
	:: else ->
		if :: p[r].tells -> forget() :: else fi;
		if :: pos[p[r].read] > pos[p[r].applied] -> p[r].applied = p[r].read :: else fi
	fi;
#ifdef RESTORE
	p[r].epoch = p[r].seen; p[r].seen = 0;
#endif
#ifdef ASYNC
	p[r].on = (then == APPLIED -> p[r].on : 0);
#else
	p[r].on = 0;
#endif
	p[r].read = 0; p[r].breaks = 0; p[r].tells = 0;
	p[r].round = then
}

/* A round that ends, well or not. Its clock reading is worth nothing from here on. */
inline rest() {
	p[r].round = RESTING; p[r].on = 0; p[r].read = 0; p[r].breaks = 0; p[r].tells = 0;
#ifdef ASYNC
	p[r].after = 0;
#endif
#ifdef RESTORE
	p[r].seen = 0;
#endif
	endClock()
}

/* Nobody reads the acknowledgement after the answer. */
#define acknowledgement (deleting >= DONE -> BEGINNING : p[r].applied)

inline heartbeat(n) {
	s[n].ack[r] = acknowledgement;
#ifndef REMOVE_BLIND
	s[n].oldLease[r] = p[r].lease; s[n].oldClock[r] = p[r].clock;
#endif
	beaten(n)
}

/* Registering raises change_head.lease, so it waits for the head's lock. seq goes on from where it was. */
inline register(n) {
	s[n].row[r] = 1; s[n].ack[r] = acknowledgement;
#ifndef SEQ_AGAIN
	s[n].oldLease[r] = p[r].lease; s[n].oldClock[r] = p[r].clock;
#endif
	beaten(n)
}

inline beaten(n) {
	cameTo(n);
#ifdef ASYNC
	if
	:: n == 1 && r == 0 -> shown = (deleting < DONE)
	:: n == 0 && r == 0 && p[r].after -> reached(18, "a heartbeat on the old primary, after DELETE's commit on the new one")
	:: else
	fi
#else
	skip
#endif
}

#if defined(OTHERS)
#define proves (deleting < DONE)
#else
#define proves (deleting == COMMITTED && p[r].after)
#endif

/* A round has ended well, whose heartbeat was committed on p[r].on. */
inline witnessed() {
#ifdef ASYNC
	if
	:: r == 0 && p[r].on == 1 -> if :: proves -> proved = 1 :: else fi
	:: r == 0 && p[r].on == 0 -> shown = 0
	:: else
	fi
#else
	skip
#endif
}

/* The heartbeat, and the instance is told so. */
inline committed(n) {
	p[r].on = n; p[r].round = BEATEN;
#ifdef TEST_HEARTBEAT
	witnessed()
#endif
}

inline accept() {
	assert(!p[r].late);
	end()
}

inline readRows(n) {
	if
#ifndef NO_LINEAGE_READ
	:: !s[n].has[p[r].from] ->
		reached(2, "a read refused, for the server lacks where it began");
		endReading();
		if :: p[r].check == WAITS -> end() :: else fi
#endif
	:: else ->
		head(n);
		p[r].saw = h; p[r].valid = !s[n].gone; p[r].reading = ANSWERED;
		h = 0
	fi
}

#ifdef NO_LEASE
#define leased(r) true
#else
#define leased(r) (p[r].lease)
#endif

#ifdef HIT_ALONE
#define current(r) true
#else
#define current(r) (p[r].applied == p[r].start)
#endif

#ifdef READ_ALONE
#define currentRow(r) true
#else
#define currentRow(r) (p[r].applied == p[r].start || p[r].applied == p[r].row)
#endif

#ifdef NO_FILL
#define fillable(r) true
#else
#define fillable(r) (p[r].applied == p[r].from || p[r].applied == p[r].saw)
#endif

#if defined(SHARE_OLDER)
#define shares(r) true
#elif defined(SHARE_POSITION)
#define shares(r) (pos[p[r].from] >= pos[p[r].start])
#else
#define shares(r) (p[r].from == p[r].start)
#endif

#if defined(NO_LINEAGE_BEAT)
#define holds(n, r) true
#else
#define holds(n, r) (s[n].has[p[r].applied])
#endif

#ifdef UNSYNCED
#define confirmed(n) true
#else
#define confirmed(n) confirmedThere(n)
#endif

/* The lock is that of the head on the primary. Nothing is revoked on server 0 where that lives on. */
#ifdef REGISTER_UNLOCKED
#define mayRegister(n) true
#else
#define mayRegister(n) (!locked || (n) != primary)
#endif

#ifdef NO_LOCK
#define mayLock true
#else
#define mayLock (!locked)
#endif

#ifdef REMOVE_EARLY
#define unmoved(n, r) true
#else
#define unmoved(n, r) (!s[n].oldLease[r] && !s[n].oldClock[r])
#endif

/* When the feed is connected anew, the pool is, too. */
#if defined(ELSEWHERE) && !defined(OLD_POOL)
#define poolOn(n, r) ((n) == 1 || !p[r].moved)
#else
#define poolOn(n, r) true
#endif

inline removeRow(n) {
	reached(3, "a row removed");
	s[n].row[r] = 0; s[n].ack[r] = 0;
	s[n].oldLease[r] = 0; s[n].oldClock[r] = 0
}

#ifdef BACKGROUND
inline endReread() {
	p[r].reread = 0; p[r].rereadOn = 0; p[r].rereadSaw = 0; p[r].rereadValid = 0; p[r].same = 0; p[r].since = 0
}

inline rereadRow(n) {
	p[r].rereadValid = !s[n].gone; p[r].rereadOn = n; p[r].reread = ANSWERED
}

inline rereadHead(n) {
	head(n);
	p[r].rereadSaw = h; p[r].reread = COMPLETE;
	h = 0
}

/* What is forgotten is reported: somebody revokes without the log. */
inline report() {
#ifdef NO_PROMOTION
	assert(deleting == UNLOGGED);
#endif
	reached(20, "a row forgotten that was revoked without the log")
}
#endif

inline nobodyWaits() {
	i = 0;
	do :: i < INSTANCES -> waitLease[i] = 0; waitClock[i] = 0; s[0].ack[i] = 0; s[1].ack[i] = 0; i++ :: else -> break od;
	i = 0
#ifdef ASYNC
	; shown = 0; proved = 0
#endif
}

/* Nothing is promised. */
inline giveUp() {
	deleting = GIVEN_UP;
	nobodyWaits()
}

inline answer() {
	deleting = DONE;
	nobodyWaits()
}

proctype process(byte r; bit checks) {
	do
	/* The log's first reading in a round, or the one every 100 ms. */
	:: d_step { p[r].round == RESTING && feedOn(0, r) -> readLog(0, READ) }
	:: d_step { p[r].round == RESTING && feedOn(1, r) -> readLog(1, READ) }
	:: d_step { p[r].round == READ -> applyLog(RESTING) }
	/* The rest of a round. */
	:: d_step { p[r].round == RESTING ->
			p[r].round = CLOCKED;
#ifdef ASYNC
			p[r].after = (deleting == COMMITTED);
#endif
#ifndef LEASE_FROM_END
			p[r].clock = 1
#endif
		}
	:: d_step { p[r].round == BEAT_AFTER && feedOn(0, r) && s[0].row[r] && holds(0, r) && confirmed(0) ->
			heartbeat(0); committed(0) }
	:: d_step { p[r].round == BEAT_AFTER && feedOn(1, r) && s[1].row[r] && holds(1, r) ->
			heartbeat(1); committed(1) }
	:: d_step { p[r].round == BEAT_AFTER && feedOn(0, r) && !s[0].row[r] && holds(0, r) && confirmedThere(0) && mayRegister(0) ->
			register(0); committed(0) }
	:: d_step { p[r].round == BEAT_AFTER && feedOn(1, r) && !s[1].row[r] && holds(1, r) && mayRegister(1) ->
			register(1); committed(1) }
	/* Committed, but the answer is lost. Or not confirmed by the standby, and yet to be seen on the abandoned server. */
	:: d_step { p[r].round == BEAT_AFTER && feedOn(0, r) && s[0].row[r] && holds(0, r) -> heartbeat(0); rest() }
	:: d_step { p[r].round == BEAT_AFTER && feedOn(1, r) && s[1].row[r] && holds(1, r) -> heartbeat(1); rest() }
	:: d_step { p[r].round == BEAT_AFTER && feedOn(0, r) && !s[0].row[r] && holds(0, r) && confirmedThere(0) && mayRegister(0) ->
			register(0); rest() }
	:: d_step { p[r].round == BEAT_AFTER && feedOn(1, r) && !s[1].row[r] && holds(1, r) && mayRegister(1) ->
			register(1); rest() }
	/* On a server that shows the heartbeat. */
	:: d_step { p[r].round == READ_AFTER && p[r].on == 0 -> readLog(0, REREAD) }
	:: d_step { p[r].round == READ_AFTER && p[r].on == 1 -> readLog(1, REREAD) }
#ifdef OTHER_CONNECTION
	:: d_step { p[r].round == READ_AFTER -> readLog(0, REREAD) }
#endif
	:: d_step { p[r].round == REREAD -> applyLog(APPLIED) }
	:: d_step { p[r].round == LEASE_AFTER ->
#ifdef LEASE_FROM_END
			endLease(); p[r].lease = 1;
#else
			p[r].lease = p[r].clock; waitLease[r] = waitClock[r];
			s[0].oldLease[r] = s[0].oldClock[r]; s[1].oldLease[r] = s[1].oldClock[r];
#endif
			witnessed();
			rest() }
	/* It fails. */
	:: d_step { p[r].round != RESTING -> rest() }

	/* Time passes. */
	:: d_step { p[r].lease -> endLease() }
	:: d_step { p[r].clock -> endClock() }

	/* Another instance removes the row. On the abandoned server, too, where that isn't confirmed but seen. */
	:: d_step { s[0].row[r] && unmoved(0, r) -> removeRow(0) }
	:: d_step { failedOver && s[1].row[r] && unmoved(1, r) -> removeRow(1) }

	/* The process ends, another begins under a new id. A DELETE of its ends, too, with no answer. */
	:: d_step {
#ifdef ASYNC
#ifdef OTHERS
			proved = (failedOver && deleting < DONE);
#else
			if
			:: deleting == LOCKED -> deleting = 0; locked = 0; pos[GONE] = 0
			:: deleting == COMMITTED -> giveUp()
			:: else
			fi;
			shown = 0;
#endif
#endif
#ifdef OLD_LIVES
			p[r].moved = failedOver;
#endif
#ifdef RESTORE
			p[r].epoch = 0;
#endif
#ifdef BACKGROUND
			endReread(); p[r].judged = 0;
#endif
			p[r].applied = BEGINNING; forget();
			endLease(); rest(); endReading(); end();
			s[0].row[r] = 0; s[0].ack[r] = 0; s[1].row[r] = 0; s[1].ack[r] = 0;
			bounded[r] = 0 }

	/* A check. */
	:: d_step { checks && p[r].check == 0 ->
			p[r].check = BEGUN; p[r].late = tooLate(r); p[r].start = p[r].applied }
	:: d_step { p[r].check == BEGUN && p[r].start != p[r].applied -> again() }
	:: d_step { p[r].check == BEGUN && p[r].cached -> p[r].check = HIT }
	:: d_step { p[r].check == HIT ->
			if
			:: leased(r) && current(r) ->
				if
				:: failedOver -> reached(6, "acceptance from the cache, after the failover")
				:: else -> reached(7, "acceptance from the cache")
				fi;
				accept()
			:: else ->
				if :: p[r].late -> reached(5, "the revoked key found in the cache after the answer, and not accepted") :: else fi;
				again()
			fi }
	:: d_step { p[r].check == BEGUN && !p[r].cached && p[r].reading == 0 ->
			p[r].check = WAITS; p[r].reading = ASKED; p[r].from = p[r].start }
	:: d_step { p[r].check == BEGUN && !p[r].cached && p[r].reading != 0 && shares(r) ->
			p[r].check = WAITS }
	:: d_step { p[r].reading == ASKED && poolOn(0, r) -> readRows(0) }
	:: d_step { p[r].reading == ASKED && failedOver -> readRows(1) }
	:: d_step { p[r].reading == ANSWERED ->
			if
			:: fillable(r) -> if :: p[r].valid -> p[r].cached = 1 :: else fi
			:: else -> reached(4, "a read that may not fill the cache")
			fi;
			if
			:: p[r].check == WAITS && p[r].valid -> p[r].check = HAS_ROW; p[r].row = p[r].saw
			:: p[r].check == WAITS && !p[r].valid -> end()
			:: else
			fi;
			endReading() }
	:: d_step { p[r].check == HAS_ROW ->
			if
			:: leased(r) && currentRow(r) ->
				if
				:: failedOver -> reached(8, "acceptance by a read, after the failover")
				:: else -> reached(9, "acceptance by a read")
				fi;
				accept()
			:: else -> again()
			fi }
	/* Its client leaves; the read goes on. */
	:: d_step { p[r].check == WAITS -> end() }

#ifdef BACKGROUND
	/* A row in memory is read again, and then the log's head in the same round trip. It is judged when that has been applied: what
	   the log says of the row until then has been done, so that a difference is one that the log doesn't tell. */
	:: d_step { p[r].reread == 0 && p[r].cached -> p[r].reread = ASKED; p[r].same = 1; p[r].since = (deleting == UNLOGGED) }
#ifdef HEAD_FIRST
	:: d_step { p[r].reread == ASKED -> rereadHead(0); p[r].reread = ANSWERED }
	:: d_step { p[r].reread == ANSWERED -> rereadRow(0); p[r].reread = COMPLETE }
#else
	:: d_step { p[r].reread == ASKED -> rereadRow(0) }
	:: d_step { p[r].reread == ASKED && failedOver -> rereadRow(1) }
	:: d_step { p[r].reread == ANSWERED && p[r].rereadOn == 0 -> rereadHead(0) }
	:: d_step { p[r].reread == ANSWERED && p[r].rereadOn == 1 -> rereadHead(1) }
#endif
#ifdef REREAD_STORES
	:: d_step { p[r].reread == COMPLETE -> p[r].cached = p[r].rereadValid; endReread() }
#else
	:: d_step { p[r].reread == COMPLETE && pos[p[r].applied] >= pos[p[r].rereadSaw] ->
			if :: p[r].since && p[r].same && p[r].reading == 0 -> p[r].judged = 1 :: else fi;
			if
#ifndef REREAD_KEEPS
			:: p[r].same && !p[r].rereadValid -> report(); forget()
#endif
			:: p[r].same && p[r].rereadValid -> reached(21, "a row found as it was")
			:: else -> reached(22, "a row not judged, for it has been forgotten")
			fi;
			endReread() }
#endif
	/* It fails, or the log takes too long. */
	:: d_step { p[r].reread != 0 -> endReread() }
#endif
	od
}

#if INSTANCES > 1
#define both(x) (x(0) && x(1))
#else
#define both(x) (x(0))
#endif
/* For a failover one of two would do: that an acknowledgement has its entry, or that a heartbeat asks whether the log holds it. */
#if defined(NUMBERS_ONLY) || defined(NO_LINEAGE_BEAT)
#define has0(e) true
#define has1(e) true
#else
#define has0(e) (s[0].has[e])
#define has1(e) (s[1].has[e])
#endif
#define acked0(r)  (!s[0].row[r] || (has0(s[0].ack[r]) && pos[s[0].ack[r]] >= pos[due]))
#define acked1(r)  (!s[1].row[r] || (has1(s[1].ack[r]) && pos[s[1].ack[r]] >= pos[due]))
#define ended(r)   (!waitLease[r] && !waitClock[r])

#ifdef POLL_ANY
#define counts(n) true
#else
#define counts(n) (s[n].has[due])
#endif

/* DELETE's own instance tests in the transaction that the database shows its heartbeat. An answer by acknowledgements needs its own
   among them, one by time a heartbeat that the database shows and that began after the commit. */
#if defined(ASYNC) && !defined(OTHERS) && !defined(NO_TEST)
#define ownShown (s[1].row[0] && shown)
#else
#define ownShown true
#endif
#if !defined(ASYNC) || defined(NO_TEST) || defined(TEST_ONCE)
#define ownAcked true
#define ownBeat  true
#elif defined(OTHERS)
#define ownAcked proved
#define ownBeat  proved
#else
#ifdef NO_OWN_ACK
#define ownAcked true
#else
#define ownAcked (s[1].row[0])
#endif
#ifdef TEST_STALE
#define ownBeat  ownShown
#else
#define ownBeat  (s[1].row[0] && shown && proved)
#endif
#endif

#if defined(RESTORE)
#define mayDelete false
#elif defined(ASYNC)
#define mayDelete (failedOver)
#else
#define mayDelete true
#endif

inline promote(other, there) {
	failedOver = 1; locked = 0;
	if :: deleting == LOCKED -> deleting = 0; pos[GONE] = 0 :: else fi;
	if :: changing == LOCKED -> changing = 0; pos[OTHER] = 0 :: else fi;
	s[1].gone = s[0].gone;
	s[1].has[GONE] = s[0].has[GONE]; s[1].has[OTHER] = other;
#ifdef ANEW
	s[1].has[BEGINNING] = s[0].has[BEGINNING]; s[1].has[FRESH] = s[0].has[FRESH];
#endif
	i = 0;
	do
	:: i < INSTANCES ->
		bounded[i] = 0;
		s[1].row[i] = there; s[1].ack[i] = (there -> s[0].ack[i] : 0);
		s[1].oldLease[i] = there && s[0].oldLease[i]; s[1].oldClock[i] = there && s[0].oldClock[i];
		i++
	:: else -> break
	od;
	i = 0
}

inline stray() {
	head(0); pos[STRAY] = pos[h] + 1; s[0].has[STRAY] = 1; h = 0
}

/* The key was created later than the state that is put back. A heartbeat of before is not shown any more. */
inline restore(other) {
	deleting = RESTORED; locked = 0;
	if :: changing == LOCKED -> changing = 0; pos[OTHER] = 0 :: else fi;
#ifdef ELSEWHERE
	failedOver = 1;
#endif
	s[failedOver].gone = 1; s[failedOver].has[OTHER] = other;
#ifndef ELSEWHERE
	i = 0;
	do :: i < INSTANCES -> if :: p[i].round == BEATEN -> p[i].on = NOWHERE :: else fi; i++ :: else -> break od;
	i = 0
#endif
}

proctype database() {
	do
	/* DELETE. The trigger locks the head's row and takes the next position; both are seen from the commit on. */
	:: d_step { deleting == 0 && mayDelete && mayLock && ownShown ->
			locked = 1; deleting = LOCKED;
#ifndef NO_LOG
			pos[GONE] = 1 + (s[primary].has[OTHER] -> pos[OTHER] : 0);
#ifdef NO_LOCK
			if :: changing == LOCKED -> pos[GONE] = 1 + pos[OTHER] :: else fi;
#endif
#endif
			i = 0;
			do :: i < INSTANCES -> bounded[i] = s[primary].row[i]; i++ :: else -> break od;
			i = 0 }
	:: d_step { deleting == LOCKED ->
			locked = 0; deleting = COMMITTED;
			s[primary].gone = 1;
#ifdef NO_LOG
			head(primary); due = h; h = 0;
#else
			s[primary].has[GONE] = 1; due = GONE;
#endif
			i = 0;
			do
			:: i < INSTANCES ->
				waitLease[i] = bounded[i] && p[i].lease;
				waitClock[i] = bounded[i] && p[i].clock;
				bounded[i] = 0;
				i++
			:: else -> break
			od;
			i = 0 }
#ifdef NO_WAIT
	:: d_step { deleting == COMMITTED -> answer() }
#endif
	:: d_step { deleting == COMMITTED && counts(0) && both(acked0) && ownAcked ->
			if
			:: s[0].row[0] -> reached(10, "an answer by acknowledgements")
			:: else -> reached(11, "an answer where no instance has a row")
			fi;
			answer() }
	:: d_step { deleting == COMMITTED && failedOver && counts(1) && both(acked1) && ownAcked ->
			if :: s[1].row[0] -> reached(12, "an answer by acknowledgements, after the failover") :: else fi;
			answer() }
	:: d_step { deleting == COMMITTED && both(ended) && ownBeat ->
			if
			:: !acked0(0) && !failedOver -> reached(13, "an answer by time")
			:: !acked1(0) && failedOver -> reached(14, "an answer by time, after the failover")
			:: else
			fi;
			answer() }

#ifndef NO_OTHER
	/* The other change. */
	:: d_step { changing == 0 && mayLock ->
			locked = 1; changing = LOCKED;
			pos[OTHER] = 1 + (s[primary].has[GONE] -> pos[GONE] : 0);
#ifdef NO_LOCK
			if :: deleting == LOCKED -> pos[OTHER] = 1 + pos[GONE] :: else fi
#endif
		}
	:: d_step { changing == LOCKED -> locked = 0; changing = COMMITTED; s[primary].has[OTHER] = 1 }
#endif

#ifndef NO_PROMOTION
	/* The standby has all that was confirmed. Transactions under way on the old primary are gone, and try again. */
	:: d_step { !failedOver -> promote(s[0].has[OTHER], s[0].row[i]) }
#ifdef ASYNC
	/* It has what was committed, or lacks the other change, or the row. */
	:: d_step { !failedOver -> promote(s[0].has[OTHER], s[0].row[i]); shown = 1 }
	:: d_step { !failedOver -> promote(s[0].has[OTHER], 0) }
	:: d_step { !failedOver -> promote(0, 0) }
#endif
	/* A change on the old primary whose wait for the standby was cancelled; or any, where it lives. */
	:: d_step { failedOver && !s[0].has[STRAY] -> stray() }
#endif

#ifdef ANEW
	:: d_step { !locked && !s[0].has[FRESH] && !s[1].has[FRESH] ->
			reached(17, "the log begun anew");
			s[primary].has[BEGINNING] = 0; s[primary].has[GONE] = 0; s[primary].has[OTHER] = 0; s[primary].has[FRESH] = 1;
#ifdef EMPTIED
			i = 0;
			do :: i < INSTANCES -> s[primary].row[i] = 0; s[primary].ack[i] = 0; i++ :: else -> break od;
			i = 0
#endif
		}
#endif

#ifdef RESTORE
	/* From when OTHER had been committed, or from before. */
	:: d_step { deleting == 0 -> restore(s[0].has[OTHER]) }
	:: d_step { deleting == 0 -> restore(0) }
	/* A change after it. */
	:: d_step { deleting == RESTORED && !s[failedOver].has[STRAY] ->
			head(failedOver); pos[STRAY] = pos[h] + 1; s[failedOver].has[STRAY] = 1; h = 0 }
#endif

#if defined(BACKGROUND) && !defined(ONLY_LOGGED)
	:: d_step { deleting == 0 -> deleting = UNLOGGED; s[primary].gone = 1 }
#endif
	od
}

init {
	d_step { s[0].has[BEGINNING] = 1; s[1].has[BEGINNING] = 1 };
	atomic {
		run database();
		run process(0, 1);
#if INSTANCES > 1
		run process(1, 0);
#endif
	}
}
