/*
 * The revocation protocol of docs/revocation.md: once DELETE has answered 200, no replica accepts the key.
 *
 * scripts/model searches every interleaving of this model, and of copies that lack one of its rules each
 * (-DNO_LEASE and so on, see the script), where a violation has to be found.
 *
 * One key is watched. What happens to it:
 *   DELETE        appends the entry GONE to the log, commits, waits, answers;
 *   another change appends the entry OTHER, before, after or between DELETE's steps;
 *   a failover    to a synchronous standby (server 1). Server 0, abandoned, goes on answering reads. What it commits from
 *                 then on nobody has confirmed, but it shows it: the entry STRAY, and heartbeats;
 *   a replica     runs rounds, verifies, is paused anywhere (a step may be as late as it likes), loses the database
 *                 (a step that asks it may fail, with or without its effect), crashes and begins anew. After the failover
 *                 each of its connections may lead to either server.
 *
 * What is left out, and why nothing is lost by it:
 *   Time      A lease is not a number but alive or over, and may end at any moment. DELETE's wait by time may end once
 *             every lease that began before its commit is over, among the replicas whose lease length it had read. That
 *             is all that a wait of bound * 1.02 + 10 ms gives, and it doesn't need any order between two leases' ends.
 *   NOTIFY    A round may begin at any moment; none has to. Timeliness is never used.
 *   Two verifications at once    Only one that began after the answer can break the promise. Whatever earlier ones did
 *             to it, they did by the cache, and by the read that they left behind: one at a time, that may take for ever.
 *   Two rounds at once    A process has one loop that reads the log and commits heartbeats.
 *   A second replica, with the failover    What replicas have in common is the database. One more makes DELETE wait for
 *             more and does nothing else to the first; a search of two without the failover makes sure that DELETE
 *             counts every one. The second verifies nothing there, because nobody reads what that would change.
 *   Other keys    An entry of another key's is OTHER.
 *   The row of a crashed process    It can only make DELETE wait longer, so it goes with the process.
 *   A commit that only the standby has    is one made on server 1 after the failover, whose answer was lost.
 *   The log's oldest rows, removed    A replica that is so far behind empties its cache, as after a failover.
 *   A cached refusal    can't be accepted.
 */

/* NO_FAILOVER and NO_OTHER make a smaller model, REPLICAS=1 too. */
#ifndef REPLICAS
#define REPLICAS 2
#endif

/* Entries of the log. An entry's number stands for its UUID; its position is pos[entry]. */
#define BEGINNING 0
#define GONE      1
#define OTHER     2
#define STRAY     3

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

/* Steps of a verification. */
#define BEGUN   1 /* start is taken */
#define HIT     2 /* found in the cache, not yet tested */
#define WAITS   3 /* for a read */
#define HAS_ROW 4 /* read, not yet tested */

/* Steps of a read, of DELETE and of the other change. */
#define ASKED     1
#define ANSWERED  2
#define LOCKED    1
#define COMMITTED 2
#define DONE      3

typedef server {
	bit has[4];         /* the log; entry e at position pos[e] */
	bit gone;           /* the watched key's row says revoked */
	bit row[REPLICAS];  /* replicas: there is a row */
	byte ack[REPLICAS]; /* and its position */
	/* What began before the row's seq last moved, and is alive. Whoever removes the row waits for that, at the least. */
	bit oldLease[REPLICAS], oldClock[REPLICAS];
}

typedef replica {
	byte applied;
	bit cached;   /* the watched key's row, saying valid */
	bit lease;    /* it is alive */
	bit clock;    /* a lease that began at the t0 of the round under way would be */

	byte round;
	bit on;       /* the server of the round's latest step */
	byte read;    /* the log's head that it saw */

	byte reading; /* the read of rows for a verification */
	byte from;    /* applied when it began */
	byte saw;     /* the log's head in its snapshot */
	bit valid;    /* the key's row in its snapshot */

	byte verify;
	bit late;     /* this verification began after DELETE's answer */
	byte start;   /* applied when it began, or began again */
	byte row;     /* the log's head in the snapshot that the row is from */
}

server s[2];
replica p[REPLICAS];
byte pos[4];
bit failedOver;
byte deleting;
byte changing;
bit locked;             /* the head's row, on the primary */
byte due;               /* the entry that DELETE waits for */
bit bounded[REPLICAS];  /* change_head.lease was at least this replica's when DELETE read it */
bit waitLease[REPLICAS], waitClock[REPLICAS]; /* what DELETE's wait by time waits for */

byte h, i; /* scratch, 0 between steps */

#define primary   (failedOver)
#define reaches(n) ((n) == 0 || failedOver)

/* With -DREACH the search says what it came by. It is the same search. */
#ifdef REACH
c_decl {
	static unsigned char told[16];
	static void reach(int n, const char *what) { if (!told[n]) { told[n] = 1; printf("reached: %s\n", what); } }
}
#define reached(n, what) c_code { reach(n, what); }
#else
#define reached(n, what) skip
#endif

/* h := the newest entry on server n */
inline head(n) {
	h = BEGINNING;
	if :: s[n].has[GONE]  && pos[GONE]  > pos[h] -> h = GONE  :: else fi;
	if :: s[n].has[OTHER] && pos[OTHER] > pos[h] -> h = OTHER :: else fi;
	if :: s[n].has[STRAY] && pos[STRAY] > pos[h] -> h = STRAY :: else fi
}

inline readLog(n, then) {
	head(n);
	p[r].read = h; p[r].on = n; p[r].round = then;
	h = 0
}

inline endLease() {
	if :: waitLease[r] -> reached(15, "the end of a lease that an answer waits for") :: else fi;
	p[r].lease = 0; waitLease[r] = 0; s[0].oldLease[r] = 0; s[1].oldLease[r] = 0
}

inline endClock() {
	p[r].clock = 0; waitClock[r] = 0; s[0].oldClock[r] = 0; s[1].oldClock[r] = 0
}

inline endReading() {
	p[r].reading = 0; p[r].from = 0; p[r].saw = 0; p[r].valid = 0
}

inline end() {
	p[r].verify = 0; p[r].late = 0; p[r].start = 0; p[r].row = 0
}

inline again() {
	p[r].verify = BEGUN; p[r].start = p[r].applied; p[r].row = 0
}

inline applyLog(then) {
	if
#ifndef NO_LINEAGE_LOG
	:: !s[p[r].on].has[p[r].applied] ->
		reached(1, "a cache emptied, for applied is of another lineage");
		p[r].cached = 0;
		p[r].applied = p[r].read;
#ifndef SAME_AGAIN
		/* What began before counts for nothing, even if applied should come back to what it was. */
		endReading();
		if :: p[r].verify != 0 -> again() :: else fi;
#endif
#ifndef KEEP_LEASE
		/* This may be the abandoned server, and the lease one that the other gave: applied may have gone back. */
		endLease()
#endif
#endif
	:: else ->
		if
		:: s[p[r].on].has[GONE] && pos[GONE] > pos[p[r].applied] && pos[GONE] <= pos[p[r].read] -> p[r].cached = 0
		:: else
		fi;
		if :: pos[p[r].read] > pos[p[r].applied] -> p[r].applied = p[r].read :: else fi
	fi;
	p[r].read = 0; p[r].on = 0;
	p[r].round = then
}

/* A round that ends, well or not. Its clock reading is worth nothing from here on. */
inline rest() {
	p[r].round = RESTING; p[r].on = 0; p[r].read = 0;
	endClock()
}

/* Nobody reads the position after the answer. */
inline heartbeat(n) {
	s[n].ack[r] = (deleting == DONE -> 0 : pos[p[r].applied]);
#ifndef REMOVE_BLIND
	s[n].oldLease[r] = p[r].lease; s[n].oldClock[r] = p[r].clock
#endif
}

/* Registering raises change_head.lease, so it waits for the head's lock. seq goes on from where it was. */
inline register() {
	s[primary].row[r] = 1; s[primary].ack[r] = (deleting == DONE -> 0 : pos[p[r].applied]);
#ifndef SEQ_AGAIN
	s[primary].oldLease[r] = p[r].lease; s[primary].oldClock[r] = p[r].clock
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
		if :: p[r].verify == WAITS -> end() :: else fi
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
#define confirmed(n) ((n) == primary)
#endif

#ifdef REGISTER_UNLOCKED
#define mayRegister true
#else
#define mayRegister (!locked)
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

inline removeRow(n) {
	reached(3, "a row removed");
	s[n].row[r] = 0; s[n].ack[r] = 0;
	s[n].oldLease[r] = 0; s[n].oldClock[r] = 0
}

proctype process(byte r; bit verifies) {
	do
	/* The log's first reading in a round, or the one every 100 ms. */
	:: d_step { p[r].round == RESTING -> readLog(0, READ) }
	:: d_step { p[r].round == RESTING && failedOver -> readLog(1, READ) }
	:: d_step { p[r].round == READ -> applyLog(RESTING) }
	/* The rest of a round. */
	:: d_step { p[r].round == RESTING ->
			p[r].round = CLOCKED;
#ifndef LEASE_FROM_END
			p[r].clock = 1
#endif
		}
	:: d_step { p[r].round == BEAT_AFTER && s[0].row[r] && holds(0, r) && confirmed(0) ->
			heartbeat(0); p[r].on = 0; p[r].round = BEATEN }
	:: d_step { p[r].round == BEAT_AFTER && failedOver && s[1].row[r] && holds(1, r) ->
			heartbeat(1); p[r].on = 1; p[r].round = BEATEN }
	:: d_step { p[r].round == BEAT_AFTER && !s[primary].row[r] && holds(primary, r) && mayRegister ->
			register(); p[r].on = primary; p[r].round = BEATEN }
	/* Committed, but the answer is lost. Or not confirmed by the standby, and yet to be seen on the abandoned server. */
	:: d_step { p[r].round == BEAT_AFTER && s[0].row[r] && holds(0, r) -> heartbeat(0); rest() }
	:: d_step { p[r].round == BEAT_AFTER && failedOver && s[1].row[r] && holds(1, r) -> heartbeat(1); rest() }
	:: d_step { p[r].round == BEAT_AFTER && !s[primary].row[r] && holds(primary, r) && mayRegister -> register(); rest() }
	/* On the connection that the heartbeat went over. */
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
			rest() }
	/* It fails. */
	:: d_step { p[r].round != RESTING -> rest() }

	/* Time passes. */
	:: d_step { p[r].lease -> endLease() }
	:: d_step { p[r].clock -> endClock() }

	/* Another replica removes the row. On the abandoned server, too, where that isn't confirmed but seen. */
	:: d_step { s[0].row[r] && unmoved(0, r) -> removeRow(0) }
	:: d_step { failedOver && s[1].row[r] && unmoved(1, r) -> removeRow(1) }

	/* The process ends, another begins under a new id. */
	:: d_step {
			p[r].applied = BEGINNING; p[r].cached = 0;
			endLease(); rest(); endReading(); end();
			s[0].row[r] = 0; s[0].ack[r] = 0; s[1].row[r] = 0; s[1].ack[r] = 0;
			bounded[r] = 0 }

	/* A verification. */
	:: d_step { verifies && p[r].verify == 0 ->
			p[r].verify = BEGUN; p[r].late = (deleting == DONE); p[r].start = p[r].applied }
	:: d_step { p[r].verify == BEGUN && p[r].start != p[r].applied -> again() }
	:: d_step { p[r].verify == BEGUN && p[r].cached -> p[r].verify = HIT }
	:: d_step { p[r].verify == HIT ->
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
	:: d_step { p[r].verify == BEGUN && !p[r].cached && p[r].reading == 0 ->
			p[r].verify = WAITS; p[r].reading = ASKED; p[r].from = p[r].start }
	:: d_step { p[r].verify == BEGUN && !p[r].cached && p[r].reading != 0 && shares(r) ->
			p[r].verify = WAITS }
	:: d_step { p[r].reading == ASKED -> readRows(0) }
	:: d_step { p[r].reading == ASKED && failedOver -> readRows(1) }
	:: d_step { p[r].reading == ANSWERED ->
			if
			:: fillable(r) -> if :: p[r].valid -> p[r].cached = 1 :: else fi
			:: else -> reached(4, "a read that may not fill the cache")
			fi;
			if
			:: p[r].verify == WAITS && p[r].valid -> p[r].verify = HAS_ROW; p[r].row = p[r].saw
			:: p[r].verify == WAITS && !p[r].valid -> end()
			:: else
			fi;
			endReading() }
	:: d_step { p[r].verify == HAS_ROW ->
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
	:: d_step { p[r].verify == WAITS -> end() }
	od
}

#if REPLICAS > 1
#define both(x) (x(0) && x(1))
#else
#define both(x) (x(0))
#endif
#define acked0(r)  (!s[0].row[r] || s[0].ack[r] >= pos[due])
#define acked1(r)  (!s[1].row[r] || s[1].ack[r] >= pos[due])
#define ended(r)   (!waitLease[r] && !waitClock[r])

#ifdef POLL_ANY
#define counts(n) true
#else
#define counts(n) (s[n].has[due])
#endif

inline answer() {
	deleting = DONE;
	i = 0;
	do :: i < REPLICAS -> waitLease[i] = 0; waitClock[i] = 0; s[0].ack[i] = 0; s[1].ack[i] = 0; i++ :: else -> break od;
	i = 0
}

proctype database() {
	do
	/* DELETE. The trigger locks the head's row and takes the next position; both are seen from the commit on. */
	:: d_step { deleting == 0 && mayLock ->
			locked = 1; deleting = LOCKED;
#ifndef NO_LOG
			pos[GONE] = 1 + (s[primary].has[OTHER] -> pos[OTHER] : 0);
#ifdef NO_LOCK
			if :: changing == LOCKED -> pos[GONE] = 1 + pos[OTHER] :: else fi;
#endif
#endif
			i = 0;
			do :: i < REPLICAS -> bounded[i] = s[primary].row[i]; i++ :: else -> break od;
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
			:: i < REPLICAS ->
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
	:: d_step { deleting == COMMITTED && counts(0) && both(acked0) ->
			if
			:: s[0].row[0] -> reached(10, "an answer by acknowledgements")
			:: else -> reached(11, "an answer where no replica has a row")
			fi;
			answer() }
	:: d_step { deleting == COMMITTED && failedOver && counts(1) && both(acked1) ->
			if :: s[1].row[0] -> reached(12, "an answer by acknowledgements, after the failover") :: else fi;
			answer() }
	:: d_step { deleting == COMMITTED && both(ended) ->
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

#ifndef NO_FAILOVER
	/* The standby has all that was confirmed. Transactions under way on the old primary are gone, and try again. */
	:: d_step { !failedOver ->
			failedOver = 1; locked = 0;
			if :: deleting == LOCKED -> deleting = 0; pos[GONE] = 0 :: else fi;
			if :: changing == LOCKED -> changing = 0; pos[OTHER] = 0 :: else fi;
			s[1].gone = s[0].gone;
			s[1].has[GONE] = s[0].has[GONE]; s[1].has[OTHER] = s[0].has[OTHER];
			i = 0;
			do
			:: i < REPLICAS -> bounded[i] = 0; 
				s[1].row[i] = s[0].row[i]; s[1].ack[i] = s[0].ack[i];
				s[1].oldLease[i] = s[0].oldLease[i]; s[1].oldClock[i] = s[0].oldClock[i];
				i++
			:: else -> break
			od;
			i = 0 }
	/* A change on the old primary whose wait for the standby was cancelled. */
	:: d_step { failedOver && !s[0].has[STRAY] -> head(0); pos[STRAY] = pos[h] + 1; s[0].has[STRAY] = 1; h = 0 }
#endif
	od
}

init {
	d_step { s[0].has[BEGINNING] = 1; s[1].has[BEGINNING] = 1 };
	atomic {
		run database();
		run process(0, 1);
#if REPLICAS > 1
		run process(1, 0);
#endif
	}
}
