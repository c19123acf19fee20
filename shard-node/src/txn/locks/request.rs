//! What is asked of the locks, and the answers.
//!
//! ```text
//!   Asker { txn, sequence }   Wanted { table 7, no key update, keys (1) (2) }, { table 7, share, itself }
//! ```

use tessera_proto::{TableId, TxnId};

/// How a row is locked, from the weakest to the strongest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// Its key stays.
    KeyShare,
    /// It stays as it is.
    Share,
    /// It is changed, but for its key.
    NoKeyUpdate,
    /// It is removed, or its key comes.
    Update,
}

impl Mode {
    /// Whether two transactions cannot have a row in these modes at once.
    pub fn conflicts(self, other: Self) -> bool {
        // KeyShare only with Update, Share with both updates, the updates with each other: PostgreSQL's table in one line.
        self as u8 + other as u8 >= 3
    }
}

/// What is locked of a table: a row by its canonical key, or (`None`) the table itself against whole segments of rows.
pub type Key = Option<Box<[u8]>>;

/// Locks of one mode in one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The table.
    pub table: TableId,
    /// The mode.
    pub mode: Mode,
    /// Which of its rows, each once.
    pub keys: Vec<Key>,
}

impl Wanted {
    /// Rows.
    pub fn rows(table: TableId, mode: Mode, keys: Vec<Box<[u8]>>) -> Self {
        let keys = keys.into_iter().map(Some).collect();
        Self { table, mode, keys }
    }

    /// The table beside other writers, as those need it who write rows of it.
    pub fn beside(table: TableId) -> Self {
        Self {
            table,
            mode: Mode::Share,
            keys: vec![None],
        }
    }

    /// The table against all other writers in this shard.
    pub fn whole(table: TableId) -> Self {
        Self {
            table,
            mode: Mode::Update,
            keys: vec![None],
        }
    }
}

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub struct Asker {
    /// The transaction.
    pub txn: TxnId,
    /// Ascends with its requests, for [`Locks::give_back`].
    pub sequence: u64,
}

/// Answer to [`Locks::acquire`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acquired {
    /// All of them.
    Yes,
    /// None yet: it stands in the queues.
    Wait,
}

/// A request that is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// The transaction would hold too many locks.
    Locks,
    /// Too many wait already.
    Queue,
    /// It waits already.
    Twice,
}

/// What there may be.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Locks of one transaction.
    pub locks: usize,
    /// Requests that wait.
    pub waiting: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            // What one log entry of 64 MiB can carry in rows of 8 bytes; their locks are about 1 GiB.
            locks: 8 << 20,
            // As many as the connections of several routers; each looks at its rows' queues when it is its turn.
            waiting: 16_384,
        }
    }
}
