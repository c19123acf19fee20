//! Which relations a view reads, so that they are not dropped under it.
//!
//! ```text
//!   CREATE VIEW v AS SELECT * FROM t JOIN s.u ...       v ──▶ public.t, s.u
//! ```
//!
//! Names are read from the view's text and looked up in the schema the view was made in. Names of CTEs look like tables
//! and may find one of the same name, which makes a drop ask for CASCADE without need.

use sqlparser::ast::{ObjectName, Query, visit_relations};
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use tessera_meta::view::ClusterView;
use tessera_parser::Statement;
use tessera_proto::TableId;
use tessera_proto::table::ViewDef;

/// Views that read any of `targets`, directly or through other views, in no order.
pub fn dependents(view: &ClusterView, targets: &BTreeSet<TableId>) -> Vec<Arc<ViewDef>> {
    let mut known = targets.clone();
    let mut found: Vec<Arc<ViewDef>> = vec![];
    loop {
        let next: Vec<_> = view
            .views
            .values()
            .filter(|v| !known.contains(&v.id) && reads(view, v).iter().any(|id| known.contains(id)))
            .cloned()
            .collect();
        if next.is_empty() {
            return found;
        }
        known.extend(next.iter().map(|v| v.id));
        found.extend(next);
    }
}

/// Tables and views that a view's query names.
pub fn reads(view: &ClusterView, def: &ViewDef) -> BTreeSet<TableId> {
    let Ok(statements) = tessera_parser::parse(&def.query) else {
        return BTreeSet::new();
    };
    let mut ids = BTreeSet::new();
    for statement in &statements {
        if let Statement::Query(query) = &statement.statement {
            for (schema, name) in names(query) {
                let schema = schema.unwrap_or_else(|| def.schema.clone());
                ids.extend(view.names.get(&(schema, name)).copied());
            }
        }
    }
    ids
}

/// Schema and name of everything a query names in FROM, folded.
pub fn names(query: &Query) -> Vec<(Option<String>, String)> {
    let mut names = vec![];
    let _ = visit_relations(query, |name: &ObjectName| {
        names.extend(split(name));
        ControlFlow::<()>::Continue(())
    });
    names
}

fn split(name: &ObjectName) -> Option<(Option<String>, String)> {
    let fold = |i: &sqlparser::ast::Ident| {
        if i.quote_style.is_some() {
            i.value.clone()
        } else {
            i.value.to_lowercase()
        }
    };
    let mut parts: Vec<String> = name.0.iter().filter_map(|p| p.as_ident().map(fold)).collect();
    let last = parts.pop()?;
    Some((parts.pop(), last))
}
