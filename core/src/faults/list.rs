//! All fail points and all planted bugs.

/// An enum whose values have names and one line each that says what they are.
macro_rules! named {
    ($(#[doc = $of:literal])+ $all:ident { $(#[doc = $says:literal] $value:ident = $name:literal,)+ }) => {
        $(#[doc = $of])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum $all {
            $(#[doc = $says] $value,)+
        }

        impl $all {
            /// All of them, in the order of a call's way.
            pub const ALL: &[Self] = &[$(Self::$value),+];

            /// Its name.
            pub fn name(self) -> &'static str {
                match self { $(Self::$value => $name),+ }
            }

            /// What it is.
            pub fn says(self) -> &'static str {
                match self { $(Self::$value => $says.trim_ascii()),+ }
            }

            /// The one of this name.
            pub fn named(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|one| one.name() == name)
            }
        }
    };
}

named! {
    /// A step of a call's way.
    Point {
        /// The head of a request has come from the app
        OutIntercepted = "out.intercepted",
        /// It is known to be a durable call, and to whom
        OutRouted = "out.routed",
        /// Its head has been made into a call
        OutEnveloped = "out.enveloped",
        /// Its caller waits for an outcome
        OutExpected = "out.expected",
        /// A chunk of a large body (or answer) is about to be appended
        BulkChunk = "bulk.chunk",
        /// A chunk is durable
        BulkStored = "bulk.stored",
        /// The body has been taken in
        OutTakenIn = "out.taken-in",
        /// The call is about to be appended
        OutAppend = "out.append",
        /// The call's append is under way
        OutAppending = "out.appending",
        /// The call is accepted
        OutAccepted = "out.accepted",

        /// A client's append has reached the embedded log
        LogAppend = "log.append",
        /// The log is about to write a batch of records
        LogWrite = "log.write",
        /// The batch is written and not acknowledged
        LogWritten = "log.written",
        /// The log is about to force what is written to the disk
        LogSync = "log.sync",
        /// A commit has reached the embedded log
        LogCommit = "log.commit",

        /// Partitions were assigned to this box
        InAssigned = "in.assigned",
        /// A fence is about to be appended
        InFence = "in.fence",
        /// The fence is durable
        InFenced = "in.fenced",
        /// What is parked is about to be read
        InLoadParked = "in.load-parked",
        /// The index of recorded calls is about to be read
        InLoadIndex = "in.load-index",
        /// Outcomes of what another box had begun are about to be looked for
        InSearch = "in.search",
        /// They have been looked for
        InSearched = "in.searched",
        /// Records were read
        InRead = "in.read",
        /// A call was taken into the window and its lane
        InTaken = "in.taken",
        /// Its turn has come, and the attempt is counted in memory
        InTurn = "in.turn",
        /// The count of a solo delivery is committed
        InSolo = "in.solo",
        /// The lease is about to be looked at
        InLease = "in.lease",
        /// The app is about to be connected to
        InConnect = "in.connect",
        /// The last byte of a body has been given to a connection: of a call to the app, of an answer to the caller
        BodyGiven = "body.given",
        /// The head of the app's answer has come
        InHead = "in.head",
        /// The app's answer is complete
        InBody = "in.body",
        /// The end of the delivery is known to the partition's owner
        InAnswered = "in.answered",
        /// A call is about to be parked
        InPark = "in.park",
        /// The parked copy is durable
        InParked = "in.parked",
        /// A dead letter is about to be appended
        InDeadLetter = "in.dead-letter",
        /// The dead letter is durable
        InDeadLettered = "in.dead-lettered",
        /// The outcome is about to be appended
        InOutcome = "in.outcome",
        /// The outcome is durable
        InOutcomeAppended = "in.outcome-appended",
        /// The entry in the index of recorded calls is about to be appended
        InIndex = "in.index",
        /// The entry is durable
        InIndexed = "in.indexed",
        /// The offset is about to be marked as done
        InMark = "in.mark",
        /// The frontier is about to be committed
        InCommit = "in.commit",
        /// The answer to a commit has come
        InCommitted = "in.committed",
        /// A query or a cancel was read
        InControl = "in.control",
        /// Partitions are asked for
        InHandover = "in.handover",
        /// The last commit is made, and a partition is about to be released
        InRelease = "in.release",
        /// Everything is released, and the group is about to be left
        InLeave = "in.leave",

        /// Replies were read
        BackRead = "back.read",
        /// A reply has found who waits for it
        BackMatched = "back.matched",
        /// The caller is about to be answered
        BackFirstByte = "back.first-byte",
    }
}

impl Point {
    /// That of an append by the owner of partitions, before it.
    pub fn append_to(topic: &str) -> Option<Self> {
        Some(match topic.rsplit('.').next()? {
            "calls" => Self::InFence,
            "parked" => Self::InPark,
            "dead-letters" => Self::InDeadLetter,
            "replies" => Self::InOutcome,
            "recorded" => Self::InIndex,
            _ => return None,
        })
    }

    /// That of an append by the owner of partitions, after it.
    pub fn appended_to(topic: &str) -> Option<Self> {
        Some(match topic.rsplit('.').next()? {
            "calls" => Self::InFenced,
            "parked" => Self::InParked,
            "dead-letters" => Self::InDeadLettered,
            "replies" => Self::InOutcomeAppended,
            "recorded" => Self::InIndexed,
            _ => return None,
        })
    }
}

named! {
    /// A mistake that a test must find.
    Bug {
        /// Ids come again
        ReusedId = "reused-id",
        /// A key is mapped with another number of partitions by some callers
        OtherPartitionCount = "other-partition-count",
        /// The embedded log acknowledges what it has not written
        ReplyBeforeDurable = "reply-before-durable",
        /// The outcome of another request with the same key is taken for one's own
        DigestIgnored = "digest-ignored",
        /// Any number of calls is held at once
        UnboundedWindow = "unbounded-window",
        /// Calls of a lane are delivered without waiting for those before
        LaneIgnored = "lane-ignored",
        /// Deliveries begin although the lease has run out
        LeaseIgnored = "lease-ignored",
        /// An owner serves without a fence
        NoFence = "no-fence",
        /// The owner of an ordinal overlooks newer claims on it
        ClaimOverlooked = "claim-overlooked",
        /// Suspects are delivered without having been looked for
        NoSearch = "no-search",
        /// An owner forgets the ends that its box is still recording for a former tenure
        FormerEndForgotten = "former-end-forgotten",
        /// Outcomes are looked for from the wrong position on
        SearchTooLate = "search-too-late",
        /// The age of a call is told by the wall clock of the box
        WrongClock = "wrong-clock",
        /// What a cancel ends has no outcome
        DropOnCancel = "drop-on-cancel",
        /// The offset is marked before the outcome is durable
        CommitBeforeOutcome = "commit-before-outcome",
        /// The frontier goes past a gap
        FrontierPastGap = "frontier-past-gap",
        /// The bitmap in a commit is off by one
        BitmapOffByOne = "bitmap-off-by-one",
        /// Commits don't tell how often a call was begun
        LostAttempts = "lost-attempts",
        /// Solo deliveries are not counted
        CrashNotCounted = "crash-not-counted",
        /// The index of recorded calls does not move with its partition
        IndexNotMoved = "index-not-moved",

        /// Calls and answers of a transaction don't wait for its record
        TxnBeforeDurable = "txn-before-durable",
        /// What was decided is decided again, the other way
        TxnDecidesTwice = "txn-decides-twice",
        /// A participant that joins again is another one
        TxnJoinsTwice = "txn-joins-twice",
        /// A call that comes again begins another transaction
        TxnBeginsTwice = "txn-begins-twice",
        /// A callback is tried again under the same key
        TxnKeyReused = "txn-key-reused",
        /// The outcome of an older callback is taken for that of the present one
        TxnLateOutcomes = "txn-late-outcomes",
        /// Compensations are called in any order
        TxnOrderIgnored = "txn-order-ignored",
        /// A nested transaction forgets before its parent has closed
        TxnForgetsEarly = "txn-forgets-early",
        /// The owner of transactions goes on when another one has taken over
        TxnFenceIgnored = "txn-fence-ignored",
        /// What a zombie has written of a transaction counts
        TxnZombiesCount = "txn-zombies-count",
        /// What a zombie has written last stays the last
        TxnNotHealed = "txn-not-healed",
        /// Steps of a saga don't wait for those before them
        TxnDependenciesIgnored = "txn-dependencies-ignored",
        /// What never ran is compensated
        TxnUndoesWhatNeverRan = "txn-undoes-what-never-ran",
        /// A compensation does not wait for the action's outcome
        TxnUndoesTooEarly = "txn-undoes-too-early",
    }
}

impl Bug {
    /// Whether it is a bug of the transaction manager, which its own model looks for.
    pub fn is_in_txmgr(self) -> bool {
        self.name().starts_with("txn-")
    }
}
