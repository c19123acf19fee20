//! Transaction blocks of a session: where they begin and end, savepoints, and what settings go back to.
//!
//! ```text
//!   none ──BEGIN──▶ in a block ──error──▶ failed: everything but ROLLBACK, COMMIT and ROLLBACK TO is 25P02
//!    ▲                  │ COMMIT             │ ROLLBACK, COMMIT (rolls back)      ROLLBACK TO s ──▶ in a block
//!    └──────────────────┴────────────────────┘
//!   implicit: several statements in one message of the simple protocol; no BEGIN, and an error ends it at once
//! ```
//!
//! Definitions are not part of transactions: in a block they are refused, between implicit ones they commit what is before them.
//! Not here: what statements write and read (txn/open.rs).

use super::Session;
use crate::outcome::Outcome;
use crate::settings::Settings;
use crate::txn::open::{Isolation, OpenTransaction};
use std::sync::Arc;
use std::time::Duration;
use tessera_parser::{Statement, TransactionModes};
use tessera_proto::{Error, Result};
use tokio::time::Instant;

/// Time to commit or to roll back to a savepoint.
const END_MAX: Duration = Duration::from_secs(120);
/// Savepoints of one transaction.
const SAVEPOINTS_MAX: usize = 10_000;

/// Where a session stands, for ReadyForQuery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransactionStatus {
    /// In no block.
    Idle,
    /// In a block.
    Open,
    /// In a block that can only be rolled back.
    Failed,
}

/// The block of a session, if it is in one.
#[derive(Debug, Default)]
pub(crate) struct Control(Option<Block>);

/// A clone of a session is in no block.
impl Clone for Control {
    fn clone(&self) -> Self {
        Self(None)
    }
}

#[derive(Debug)]
struct Block {
    open: Arc<OpenTransaction>,
    read_only: bool,
    implicit: bool,
    failed: bool,
    /// A statement ran: its isolation stays as it is.
    began: bool,
    savepoints: Vec<Savepoint>,
    /// Settings after a rollback, and after a commit: SET LOCAL is in neither.
    before: Settings,
    after: Settings,
}

#[derive(Debug)]
struct Savepoint {
    name: String,
    mark: u64,
    settings: Settings,
    after: Settings,
}

impl Control {
    /// What the next statement belongs to.
    pub(super) fn transaction(&self) -> Option<Arc<OpenTransaction>> {
        self.0.as_ref().map(|block| block.open.clone())
    }
}

impl Session {
    /// Where it stands.
    pub fn transaction_status(&self) -> TransactionStatus {
        match &self.control.0 {
            Some(block) if block.failed => TransactionStatus::Failed,
            Some(_) => TransactionStatus::Open,
            None => TransactionStatus::Idle,
        }
    }

    /// A statement of its transaction failed, perhaps after [`Session::execute`] gave rows. An implicit block ends.
    pub fn fail(&mut self) {
        let Some(block) = &mut self.control.0 else { return };
        block.failed = true;
        if block.savepoints.is_empty() {
            block.open.abandon();
        }
        if block.implicit {
            self.roll_back();
        }
    }

    /// Makes the statements up to [`Session::end_implicit`] one transaction, unless they are in a block already.
    pub fn begin_implicit(&mut self) {
        if self.control.0.is_none() {
            // The session's defaults were checked when they were set.
            let _ = self.begin_block(&TransactionModes::default(), true);
        }
    }

    /// Commits an implicit block.
    ///
    /// # Errors
    /// Those of COMMIT.
    pub async fn end_implicit(&mut self) -> Result<()> {
        match &self.control.0 {
            Some(block) if block.implicit => self.commit_block().await.map_err(crate::error::give_up),
            _ => Ok(()),
        }
    }

    /// Runs a statement that begins, ends or divides a transaction, or changes it; `None` for any other.
    pub(super) async fn control(&mut self, statement: &Statement) -> Result<Option<Outcome>> {
        if self.transaction_status() == TransactionStatus::Failed && !is_control(statement) {
            return Err(aborted());
        }
        let outcome = match statement {
            Statement::Begin(modes) => self.begin(modes)?,
            Statement::Commit { chain } => self.commit(*chain).await?,
            Statement::Rollback { chain } => self.rollback(*chain)?,
            Statement::Savepoint { name } => self.savepoint(name)?,
            Statement::Release { name } => self.release(name)?,
            Statement::RollbackTo { name } => self.rollback_to(name).await?,
            Statement::Set { local, name, value } => self.set(*local, name, value.as_deref())?,
            Statement::Reset { name } => self.reset(name.as_deref())?,
            Statement::Discard if self.in_block() => return Err(not_in_block("DISCARD ALL")),
            Statement::Vacuum(_) if self.in_block() => return Err(not_in_block("VACUUM")),
            _ => {
                self.check(statement).await?;
                return Ok(None);
            }
        };
        Ok(Some(outcome))
    }

    pub(super) fn in_block(&self) -> bool {
        self.control.0.as_ref().is_some_and(|block| !block.implicit)
    }

    /// Whether a statement may run here and now.
    async fn check(&mut self, statement: &Statement) -> Result<()> {
        let read_only = match &self.control.0 {
            Some(block) => block.read_only,
            None => self.settings.is_on("default_transaction_read_only"),
        };
        if let Some(name) = writes(statement).filter(|_| read_only) {
            let message = format!("cannot execute {name} in a read-only transaction");
            return Err(Error::new("25006", message));
        }
        if defines(statement) || matches!(statement, Statement::Vacuum(_)) {
            if self.in_block() {
                return Err(Error::unsupported(
                    "a definition inside a transaction block is not supported",
                    "COMMIT first; it is a transaction of its own",
                ));
            }
            self.end_implicit().await?;
        }
        if let Some(block) = &mut self.control.0 {
            block.began = true;
        }
        Ok(())
    }

    fn begin(&mut self, modes: &TransactionModes) -> Result<Outcome> {
        if self.in_block() {
            return Ok(warned("BEGIN", "25001", "there is already a transaction in progress"));
        }
        match &mut self.control.0 {
            // What ran before in this message is part of the block.
            Some(block) => {
                block.implicit = false;
                self.change_modes(modes)?;
            }
            None => self.begin_block(modes, false)?,
        }
        Ok(Outcome::done("BEGIN"))
    }

    fn begin_block(&mut self, modes: &TransactionModes, implicit: bool) -> Result<()> {
        let default = self.settings.get("default_transaction_isolation").unwrap_or_default();
        let isolation = isolation(modes.isolation.as_deref().unwrap_or(&default))?;
        let default = self.settings.is_on("default_transaction_read_only");
        let read_only = modes.read_only.unwrap_or(default);
        let before = self.settings.clone();
        self.show_modes(isolation, read_only)?;
        self.control.0 = Some(Block {
            open: OpenTransaction::begin(&self.engine, isolation),
            read_only,
            implicit,
            failed: false,
            began: false,
            savepoints: vec![],
            after: before.clone(),
            before,
        });
        Ok(())
    }

    fn show_modes(&mut self, isolation: Isolation, read_only: bool) -> Result<()> {
        self.settings.set("transaction_isolation", isolation.name())?;
        self.settings
            .set("transaction_read_only", if read_only { "on" } else { "off" })
    }

    /// SET TRANSACTION, and the modes of a BEGIN that others preceded.
    fn change_modes(&mut self, modes: &TransactionModes) -> Result<()> {
        let Some(block) = &mut self.control.0 else {
            return Ok(());
        };
        if let Some(level) = &modes.isolation {
            let isolation = isolation(level)?;
            if isolation != block.open.isolation() {
                if block.began {
                    let message = "SET TRANSACTION ISOLATION LEVEL must be called before any query";
                    return Err(Error::new("25001", message));
                }
                block.open = OpenTransaction::begin(&self.engine, isolation);
            }
        }
        if let Some(read_only) = modes.read_only {
            if block.read_only && !read_only && block.began {
                let message = "transaction read-write mode must be set before any query";
                return Err(Error::new("25001", message));
            }
            block.read_only = read_only;
        }
        let (isolation, read_only) = (block.open.isolation(), block.read_only);
        self.show_modes(isolation, read_only)
    }

    async fn commit(&mut self, chain: bool) -> Result<Outcome> {
        let Some(block) = &self.control.0 else {
            return no_block("COMMIT", chain);
        };
        let (failed, implicit, modes) = (block.failed, block.implicit, modes_of(block));
        if implicit && chain {
            return Err(Error::new(
                "25P01",
                "COMMIT AND CHAIN can only be used in transaction blocks",
            ));
        }
        if failed {
            self.roll_back();
        } else {
            self.commit_block().await?;
        }
        if chain {
            self.begin_block(&modes, false)?;
        }
        match (failed, implicit) {
            (true, _) => Ok(Outcome::done("ROLLBACK")),
            (false, true) => no_block("COMMIT", false),
            (false, false) => Ok(Outcome::done("COMMIT")),
        }
    }

    async fn commit_block(&mut self) -> Result<()> {
        let Some(block) = self.control.0.take() else {
            return Ok(());
        };
        let committed = block.open.commit(Instant::now() + END_MAX).await;
        self.settings = if committed.is_ok() { block.after } else { block.before };
        committed
    }

    fn rollback(&mut self, chain: bool) -> Result<Outcome> {
        let Some(block) = &self.control.0 else {
            return no_block("ROLLBACK", chain);
        };
        let modes = modes_of(block);
        self.roll_back();
        if chain {
            self.begin_block(&modes, false)?;
        }
        Ok(Outcome::done("ROLLBACK"))
    }

    fn roll_back(&mut self) {
        if let Some(block) = self.control.0.take() {
            block.open.abandon();
            self.settings = block.before;
        }
    }

    fn savepoint(&mut self, name: &str) -> Result<Outcome> {
        let block = self.block("SAVEPOINT")?;
        if block.savepoints.len() >= SAVEPOINTS_MAX {
            return Err(Error::new(
                "53400",
                format!("a transaction may have {SAVEPOINTS_MAX} savepoints"),
            ));
        }
        let (mark, after) = (block.open.mark(), block.after.clone());
        let settings = self.settings.clone();
        self.block("SAVEPOINT")?.savepoints.push(Savepoint {
            name: name.to_owned(),
            mark,
            settings,
            after,
        });
        Ok(Outcome::done("SAVEPOINT"))
    }

    fn release(&mut self, name: &str) -> Result<Outcome> {
        let block = self.block("RELEASE SAVEPOINT")?;
        let at = find(&block.savepoints, name)?;
        block.savepoints.truncate(at);
        Ok(Outcome::done("RELEASE"))
    }

    async fn rollback_to(&mut self, name: &str) -> Result<Outcome> {
        let block = self.block("ROLLBACK TO SAVEPOINT")?;
        let at = find(&block.savepoints, name)?;
        let open = block.open.clone();
        open.undo(block.savepoints[at].mark, Instant::now() + END_MAX).await?;
        block.savepoints.truncate(at + 1);
        block.failed = false;
        let (settings, after) = (
            block.savepoints[at].settings.clone(),
            block.savepoints[at].after.clone(),
        );
        block.after = after;
        self.settings = settings;
        Ok(Outcome::done("ROLLBACK"))
    }

    /// The explicit block.
    fn block(&mut self, what: &str) -> Result<&mut Block> {
        let block = self.control.0.as_mut().filter(|block| !block.implicit);
        block.ok_or_else(|| Error::new("25P01", format!("{what} can only be used in transaction blocks")))
    }

    fn set(&mut self, local: bool, name: &str, value: Option<&str>) -> Result<Outcome> {
        let modes = match (name, value) {
            ("transaction_isolation", Some(level)) => Some(TransactionModes {
                isolation: Some(level.to_ascii_lowercase()),
                read_only: None,
            }),
            ("transaction_read_only", Some(on)) => Some(TransactionModes {
                isolation: None,
                read_only: Some(is_on(on)?),
            }),
            // It means something for serializable transactions only.
            ("transaction_deferrable" | "default_transaction_deferrable", Some(_)) => Some(TransactionModes::default()),
            ("default_transaction_isolation", Some(level)) => {
                isolation(level)?;
                None
            }
            _ => None,
        };
        let in_block = self.control.0.is_some();
        if let Some(modes) = modes {
            if !in_block {
                let message = "SET TRANSACTION can only be used in transaction blocks";
                return Ok(warned("SET", "25P01", message));
            }
            self.change_modes(&modes)?;
            return Ok(Outcome::done("SET"));
        }
        if local && !in_block {
            return Ok(warned(
                "SET",
                "25P01",
                "SET LOCAL can only be used in transaction blocks",
            ));
        }
        let change = |settings: &mut Settings| match value {
            Some(value) => settings.set(name, value),
            None => settings.reset(name),
        };
        change(&mut self.settings)?;
        match &mut self.control.0 {
            Some(block) if !local => change(&mut block.after)?,
            _ => {}
        }
        Ok(Outcome::done("SET"))
    }

    fn reset(&mut self, name: Option<&str>) -> Result<Outcome> {
        let change = |settings: &mut Settings| match name {
            Some(name) => settings.reset(name),
            None => {
                settings.reset_all();
                Ok(())
            }
        };
        change(&mut self.settings)?;
        if let Some(block) = &mut self.control.0 {
            change(&mut block.after)?;
        }
        Ok(Outcome::done("RESET"))
    }
}

/// Whether a statement may run in a failed block.
pub(super) fn is_control(statement: &Statement) -> bool {
    matches!(
        statement,
        Statement::Commit { .. } | Statement::Rollback { .. } | Statement::RollbackTo { .. }
    )
}

/// 25P02.
pub(super) fn aborted() -> Error {
    let message = "current transaction is aborted, commands ignored until end of transaction block";
    Error::new("25P02", message)
}

fn find(savepoints: &[Savepoint], name: &str) -> Result<usize> {
    let found = savepoints.iter().rposition(|savepoint| savepoint.name == name);
    found.ok_or_else(|| Error::new("3B001", format!("savepoint \"{name}\" does not exist")))
}

fn modes_of(block: &Block) -> TransactionModes {
    TransactionModes {
        isolation: Some(block.open.isolation().name().to_owned()),
        read_only: Some(block.read_only),
    }
}

fn isolation(level: &str) -> Result<Isolation> {
    match level.to_ascii_lowercase().as_str() {
        // PostgreSQL has no dirty reads either.
        "read committed" | "read uncommitted" => Ok(Isolation::ReadCommitted),
        "repeatable read" => Ok(Isolation::RepeatableRead),
        "serializable" => Err(Error::unsupported(
            "isolation level SERIALIZABLE is not supported",
            "use REPEATABLE READ: a transaction sees one snapshot, and fails when it writes a row that changed since",
        )),
        _ => Err(Error::new("22023", format!("isolation level \"{level}\" is not known"))),
    }
}

fn is_on(value: &str) -> Result<bool> {
    match value.to_ascii_lowercase().as_str() {
        "on" | "true" | "yes" | "1" => Ok(true),
        "off" | "false" | "no" | "0" => Ok(false),
        _ => Err(Error::new(
            "22023",
            format!("parameter requires a Boolean value, not \"{value}\""),
        )),
    }
}

/// Done, with a warning.
fn warned(tag: &str, code: &str, message: &str) -> Outcome {
    Outcome::Done {
        tag: tag.to_owned(),
        notices: vec![Error::new(code, message)],
    }
}

/// COMMIT or ROLLBACK outside a block.
fn no_block(tag: &str, chain: bool) -> Result<Outcome> {
    match chain {
        true => Err(Error::new(
            "25P01",
            format!("{tag} AND CHAIN can only be used in transaction blocks"),
        )),
        false => Ok(warned(tag, "25P01", "there is no transaction in progress")),
    }
}

fn not_in_block(what: &str) -> Error {
    Error::new("25001", format!("{what} cannot run inside a transaction block"))
}

/// The name of a statement that changes rows or definitions.
fn writes(statement: &Statement) -> Option<&'static str> {
    match statement {
        Statement::Insert(_) => Some("INSERT"),
        Statement::Update(_) => Some("UPDATE"),
        Statement::Delete(_) => Some("DELETE"),
        Statement::CopyFrom(_) => Some("COPY FROM"),
        Statement::CreateSchema { .. } => Some("CREATE SCHEMA"),
        Statement::CreateTable(_) => Some("CREATE TABLE"),
        Statement::CreateTableAs(_) => Some("CREATE TABLE AS"),
        Statement::CreateView { .. } => Some("CREATE VIEW"),
        Statement::DropTable { .. } => Some("DROP TABLE"),
        Statement::DropView { .. } => Some("DROP VIEW"),
        Statement::DropSchema { .. } => Some("DROP SCHEMA"),
        _ => None,
    }
}

/// Whether a statement changes the catalog or the cluster.
fn defines(statement: &Statement) -> bool {
    matches!(
        statement,
        Statement::CreateSchema { .. }
            | Statement::CreateTable(_)
            | Statement::CreateTableAs(_)
            | Statement::CreateView { .. }
            | Statement::DropTable { .. }
            | Statement::DropView { .. }
            | Statement::DropSchema { .. }
            | Statement::AlterShard { .. }
    )
}
