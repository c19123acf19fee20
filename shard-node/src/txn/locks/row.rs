//! One lock: who holds it how, and who stands in line for it.
//!
//! ```text
//!   holders  A share, B share          queue  A update (holds it: first)   C update (arrival 4)   D share (arrival 9)
//! ```
//!
//! The queue is in no particular order here: who is before whom follows from the arrivals.

use super::Mode;
use tessera_proto::TxnId;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Lock {
    holders: Holders,
    queue: Vec<Queued>,
}

/// Nearly always one, and then nothing is allocated.
#[derive(Debug, Default)]
enum Holders {
    #[default]
    Nobody,
    One((TxnId, Mode)),
    Many(Vec<(TxnId, Mode)>),
}

#[derive(Debug)]
struct Queued {
    txn: TxnId,
    mode: Mode,
    /// It holds the lock in a weaker mode.
    raises: bool,
    order: u64,
}

impl Holders {
    fn all(&self) -> &[(TxnId, Mode)] {
        match self {
            Self::Nobody => &[],
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }

    fn all_mut(&mut self) -> &mut [(TxnId, Mode)] {
        match self {
            Self::Nobody => &mut [],
            Self::One(one) => std::slice::from_mut(one),
            Self::Many(many) => many,
        }
    }
}

impl Lock {
    /// How a transaction holds it.
    pub(super) fn mode_of(&self, txn: TxnId) -> Option<Mode> {
        let mine = self.holders.all().iter().find(|(holder, _)| *holder == txn);
        mine.map(|(_, mode)| *mode)
    }

    /// Who keeps a transaction that came at `order` from holding it in this mode: others that hold it, and those before it in the
    /// queue, as far as their modes conflict. Nobody, if it holds it so already.
    pub(super) fn blockers(&self, txn: TxnId, order: u64, mode: Mode) -> impl Iterator<Item = TxnId> {
        let mine = self.mode_of(txn);
        let enough = mine.is_some_and(|mine| mine >= mode);
        let holders = self.holders.all().iter();
        let holders = holders.filter(move |(_, held)| held.conflicts(mode)).map(|(holder, _)| *holder);
        let place = (mine.is_none(), order);
        let before = move |queued: &&Queued| (!queued.raises, queued.order) < place && queued.mode.conflicts(mode);
        let queued = self.queue.iter().filter(before).map(|queued| queued.txn);
        holders.chain(queued).filter(move |other| !enough && *other != txn)
    }

    /// Holds it at least in this mode from now on; how it held it before.
    pub(super) fn hold(&mut self, txn: TxnId, mode: Mode) -> Option<Mode> {
        if let Some((_, held)) = self.holders.all_mut().iter_mut().find(|(holder, _)| *holder == txn) {
            let before = *held;
            *held = before.max(mode);
            return Some(before);
        }
        match &mut self.holders {
            Holders::Nobody => self.holders = Holders::One((txn, mode)),
            Holders::One(one) => self.holders = Holders::Many(vec![*one, (txn, mode)]),
            Holders::Many(many) => many.push((txn, mode)),
        }
        None
    }

    /// Holds it in this mode, whatever was before.
    pub(super) fn weaken(&mut self, txn: TxnId, mode: Mode) {
        if let Some((_, held)) = self.holders.all_mut().iter_mut().find(|(holder, _)| *holder == txn) {
            *held = mode;
        }
    }

    /// Holds it no more.
    pub(super) fn let_go(&mut self, txn: TxnId) {
        match &mut self.holders {
            Holders::One((holder, _)) if *holder == txn => self.holders = Holders::Nobody,
            Holders::Many(many) => {
                many.retain(|(holder, _)| *holder != txn);
                if let [one] = many[..] {
                    self.holders = Holders::One(one);
                }
            }
            Holders::Nobody | Holders::One(_) => {}
        }
    }

    /// Stands in line.
    pub(super) fn enqueue(&mut self, txn: TxnId, order: u64, mode: Mode) {
        let raises = self.mode_of(txn).is_some();
        self.queue.push(Queued {
            txn,
            mode,
            raises,
            order,
        });
    }

    /// Leaves the line.
    pub(super) fn dequeue(&mut self, txn: TxnId) {
        self.queue.retain(|queued| queued.txn != txn);
        if self.queue.is_empty() {
            // Most are never waited for again.
            self.queue = Vec::new();
        }
    }

    /// Whether nobody has anything to do with it.
    pub(super) fn is_unused(&self) -> bool {
        self.queue.is_empty() && self.holders.all().is_empty()
    }
}
