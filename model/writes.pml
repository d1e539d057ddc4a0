/*
 * The second promise of docs/revocation.md: no write of a caller takes effect once that caller's revocation has been answered.
 *
 * scripts/model searches every interleaving of this model, and of copies that lack one of its rules each, where a
 * violation has to be found, as with model/revocation.pml.
 *
 * The caller is one that the key identifies. There is one write of its, decided upon when the key was valid, and then held up
 * for as long as it likes: before it is sent, and between any two of its statements. Beside it are
 *   DELETE        which locks, changes the key's row, commits, and is answered at any time after its commit was confirmed;
 *   a failover    to a synchronous standby (server 1). Server 0, abandoned, goes on: a transaction under way there ends as if
 *                 nothing had happened. But nobody confirms it, and what it wrote has no effect.
 *
 * A lock is of one server. A write locks its customer, and everything, both shared; DELETE locks exclusively either the
 * customer or, if it changes many, everything.
 *
 * What is left out, and why nothing is lost by it:
 *   The waiting for instances    It only delays the answer. Here that may come at once.
 *   Two writes    have nothing to do with each other, but for what DELETE waits for. One that is logged locks exclusively: that
 *                 keeps away more.
 *   The order of DELETE's statements    A trigger locks after the row was changed, the service before. Both are seen from
 *                 the commit on.
 *   Waiting for the standby    A lock is held until then. A commit that the standby has when it is promoted, but that nobody
 *                 confirmed, is one from just before the promotion.
 *   A commit whose wait for the standby was cancelled    is in the log before everything that the server commits after it: if
 *                 DELETE is confirmed later, so is the write.
 */

/* Locks. */
#define CUSTOMER 0
#define ALL      1

/* Steps of the write. */
#define SENT      1
#define LOCKED_1  2 /* everything */
#define LOCKED_2  3 /* and the customer */
#define LOOKED    4 /* the condition's snapshot was taken */
#define HELD      5 /* the condition holds, the write is done */
#define ENDED     6

/* Steps of DELETE. */
#define LOCKED    1
#define COMMITTED 2
#define DONE      3
#define UNKNOWN   4 /* committed, but not confirmed: 503 */

typedef server {
	bit gone;         /* the key's row says revoked */
	bit shared[2];    /* locks of the write */
	bit exclusive[2]; /* of DELETE */
}

server s[2];
bit failedOver;
byte writing;
bit on;         /* the server of the write */
bit sawGone;    /* the row in the condition's snapshot */
byte deleting;
bit what;       /* DELETE locks */

#define primary (failedOver)

#ifdef REACH
c_decl {
	static unsigned char told[32];
	static void reach(int n, const char *what) { if (!told[n]) { told[n] = 1; printf("reached: %s\n", what); } }
}
#define reached(n, what) c_code { reach(n, what); }
#else
#define reached(n, what) skip
#endif

inline unlockWrite() {
	s[on].shared[ALL] = 0; s[on].shared[CUSTOMER] = 0
}

inline endWrite() {
	unlockWrite();
	writing = ENDED; on = 0; sawGone = 0
}

/* The steps of the write, in order. */
#ifdef NO_LOCKS
#define firstLock  false
#define secondLock false
#define LOOK_AFTER SENT
#else
#define firstLock  (writing == SENT && !s[on].exclusive[ALL])
#define secondLock (writing == LOCKED_1 && !s[on].exclusive[CUSTOMER])
#define LOOK_AFTER LOCKED_2
#endif

/* DELETE waits for the write's lock. */
#ifdef DELETE_UNLOCKED
#define mayLock(l) true
#else
#define mayLock(l) (!s[primary].shared[l])
#endif

inline lock(l) {
	what = l; deleting = LOCKED;
#ifndef DELETE_UNLOCKED
	s[primary].exclusive[l] = 1
#endif
}

inline unlock() {
	s[primary].exclusive[CUSTOMER] = 0; s[primary].exclusive[ALL] = 0; what = 0
}

/* DELETE, if under way, is gone, and tries again. */
inline promote(there) {
	if :: deleting == LOCKED -> deleting = 0; unlock() :: else fi;
	failedOver = 1;
	s[1].gone = there
}

proctype write() {
end:
	do
	:: d_step { writing == 0 ->
			writing = SENT; on = 0;
#ifdef ONE_SNAPSHOT
			sawGone = s[0].gone
#endif
		}
	:: d_step { writing == 0 && failedOver ->
			writing = SENT; on = 1;
#ifdef ONE_SNAPSHOT
			sawGone = s[1].gone
#endif
		}
	:: d_step { firstLock ->
#ifndef NO_LOCK_OF_ALL
			s[on].shared[ALL] = 1;
#endif
			writing = LOCKED_1 }
	:: d_step { secondLock ->
			if :: s[on].gone -> reached(1, "a write that began before DELETE and locks after it") :: else fi;
			s[on].shared[CUSTOMER] = 1; writing = LOCKED_2;
#ifdef LOCK_LET_GO
			unlockWrite()
#endif
		}
	/* A statement of its own, with a snapshot of its own, on the same server. */
	:: d_step { writing == LOOK_AFTER ->
#ifndef ONE_SNAPSHOT
			sawGone = s[on].gone;
#endif
			writing = LOOKED }
#ifdef CONDITION_ELSEWHERE
	:: d_step { writing == LOOK_AFTER -> sawGone = s[0].gone; writing = LOOKED }
#endif
#ifdef NO_CONDITION
	:: d_step { writing == LOOKED -> writing = HELD }
#else
	:: d_step { writing == LOOKED && !sawGone -> writing = HELD }
	:: d_step { writing == LOOKED && sawGone -> reached(2, "a write ended by its condition"); endWrite() }
#endif
	:: d_step { writing == HELD ->
			if
			:: on == primary ->
				if
				:: failedOver -> reached(3, "a write committed after the failover")
				:: else -> reached(4, "a write committed")
				fi;
				assert(deleting != DONE)
			:: else ->
				if
				:: deleting == DONE -> reached(5, "a write without effect, on the abandoned server after the answer")
				:: else
				fi
			fi;
			endWrite() }
	/* The connection is lost, or the caller is told of something else. */
	:: d_step { writing != 0 && writing != ENDED -> endWrite() }
	od
}

proctype database() {
end:
	do
	:: d_step { deleting == 0 && !s[primary].gone && mayLock(CUSTOMER) ->
			if :: writing == ENDED -> reached(6, "DELETE after the write") :: else fi;
			lock(CUSTOMER) }
	:: d_step { deleting == 0 && !s[primary].gone && mayLock(ALL) -> lock(ALL) }
	:: d_step { deleting == LOCKED -> s[primary].gone = 1; deleting = COMMITTED; unlock() }
	:: d_step { deleting == LOCKED && !failedOver -> s[0].gone = 1; deleting = UNKNOWN; unlock() }
	:: d_step { deleting == LOCKED -> deleting = 0; unlock() }
	:: d_step { deleting == COMMITTED ->
			if
			:: writing != 0 && writing != ENDED -> reached(7, "an answer while the write is under way")
			:: else
			fi;
			deleting = DONE }
	/* The standby has what was confirmed, and perhaps what was not. */
	:: d_step { !failedOver -> promote(s[0].gone) }
	:: d_step { !failedOver && deleting == UNKNOWN -> promote(0); deleting = 0 }
	od
}

init {
	atomic {
		run database();
		run write();
	}
}
