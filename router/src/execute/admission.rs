//! How many queries that read much run at a time; the others wait in line.
//!
//! ```text
//!   reads few rows ─────────────────────────────────────▶ runs
//!   reads many      ──▶ a place, first come first served ──▶ runs until its plan has ended
//!   ran out of memory ▶ all places ──▶ runs again, alone among those: as planned if others ran beside it, then with joins that spill
//! ```
//!
//! They share cores, so that more of them at a time are not sooner done, and memory, of which each then has less: thirty hash
//! joins that fit one after the other do not fit together. A place is given back when the plan ends, or when its
//! client has kept it waiting for a second. Waiting ends with the statement's time, or when its user cancels.

use super::prepare::stub;
use crate::cluster::catalog::StatementCatalog;
use crate::session::StatementContext;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::logical_expr::LogicalPlan;
use std::sync::Arc;
use tessera_planner::Catalog;
use tessera_proto::{Error, Result};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Rows of all tables of a query from which on it counts as one that reads much. What fewer rows need is not worth waiting for.
const ROWS_MANY: usize = 20_000;
/// Places for each query thread.
const PLACES_PER_THREAD: usize = 2;

/// The places of one router.
#[derive(Debug)]
pub(crate) struct Admission {
    places: Arc<Semaphore>,
    count: u32,
}

/// How a query asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Entry {
    /// By what it reads.
    Usual,
    /// It ran out of memory beside others.
    Alone,
}

/// A place. Dropping it lets the next query in.
#[derive(Debug)]
pub(crate) struct Place(#[expect(dead_code, reason = "held, not read")] Option<OwnedSemaphorePermit>);

impl Admission {
    /// Places for so many query threads.
    pub(crate) fn new(threads: usize) -> Self {
        let count = (PLACES_PER_THREAD * threads.max(1)).min(u16::MAX.into()) as u32;
        Self {
            places: Arc::new(Semaphore::new(count as usize)),
            count,
        }
    }

    /// Whether a query has a place or waits for all of them now. A moment later it may be different.
    pub(crate) fn is_shared(&self) -> bool {
        self.places.available_permits() < self.count as usize
    }

    /// Waits for a place if `plan` reads much.
    ///
    /// # Errors
    /// 57014 when the statement's time is over first.
    pub(crate) async fn enter(
        &self,
        context: &StatementContext,
        catalog: &StatementCatalog,
        plan: &LogicalPlan,
        entry: Entry,
    ) -> Result<Place> {
        let wanted = match entry {
            Entry::Alone => self.count,
            Entry::Usual if rows(catalog, plan)? < ROWS_MANY => return Ok(Place(None)),
            Entry::Usual => 1,
        };
        let places = self.places.clone();
        let closed = || Error::unavailable("the router is shutting down");
        let place = context.bounded(async { places.acquire_many_owned(wanted).await.map_err(|_| closed()) });
        Ok(Place(Some(place.await?)))
    }
}

/// Rows of the tables that a plan reads, before it prunes any. What nobody has counted yet is taken for many.
fn rows(catalog: &StatementCatalog, plan: &LogicalPlan) -> Result<usize> {
    let mut rows = 0_usize;
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node
            && let Some(stub) = stub(scan)
        {
            let known = catalog.statistics(stub.def.id);
            let count = known.and_then(|known| known.num_rows.get_value().copied());
            rows = rows.saturating_add(count.unwrap_or(ROWS_MANY));
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    Ok(rows)
}
