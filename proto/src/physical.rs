//! The physical rules of every session that plans queries, on routers and nodes: DataFusion's, with ours among them.
//!
//! ```text
//!       ... JoinSelection     ... FilterPushdown     EnsureRequirements ... FilterPushdown     SanityCheckPlan
//!          ^              ^         gated          ^                          gated          ^                 ^
//!   EstimateKeyFilters    BroadcastSmallSides      ForgetInOuterSides              EnsureOrder    FrugalPlans, YieldInJoins
//! ```

use crate::broadcast::BroadcastSmallSides;
use crate::frugal::FrugalPlans;
use crate::key_filter::EstimateKeyFilters;
use crate::order::EnsureOrder;
use crate::outer_sides::ForgetInOuterSides;
use crate::pushdown::GatedPushdown;
use crate::yielding::YieldInJoins;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_optimizer::optimizer::PhysicalOptimizer;
use std::sync::Arc;

/// A rule of a session.
pub type Rule = Arc<dyn PhysicalOptimizerRule + Send + Sync>;

/// All rules in their order.
pub fn rules() -> Vec<Rule> {
    let mut rules: Vec<Rule> = vec![];
    for rule in PhysicalOptimizer::new().rules {
        match rule.name() {
            name if name.starts_with("FilterPushdown") => rules.push(Arc::new(GatedPushdown(rule))),
            "join_selection" => rules.extend([
                Arc::new(EstimateKeyFilters),
                rule,
                Arc::new(BroadcastSmallSides),
            ] as [Rule; 3]),
            "EnsureRequirements" => rules.extend([Arc::new(ForgetInOuterSides), rule] as [Rule; 2]),
            "SanityCheckPlan" => rules.extend([Arc::new(EnsureOrder), rule] as [Rule; 2]),
            _ => rules.push(rule),
        }
    }
    // Last: they must see the joins that the other rules leave.
    rules.push(Arc::new(FrugalPlans));
    rules.push(Arc::new(YieldInJoins));
    rules
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ours_stand_where_they_must() {
        let rules = rules();
        let names: Vec<_> = rules.iter().map(|rule| rule.name()).collect();
        let at = |name: &str| {
            let all: Vec<_> = names
                .iter()
                .enumerate()
                .filter(|(_, n)| **n == name)
                .map(|(i, _)| i)
                .collect();
            assert!(!all.is_empty(), "{name} is not among {names:?}");
            all
        };
        assert_eq!(at("GatedPushdown").len(), 2);
        assert!(
            !names.iter().any(|name| name.starts_with("FilterPushdown")),
            "{names:?}"
        );
        assert_eq!(at("estimate_key_filters")[0] + 1, at("join_selection")[0]);
        assert_eq!(at("join_selection")[0] + 1, at("broadcast_small_sides")[0]);
        assert!(at("join_selection")[0] < at("forget_in_outer_sides")[0]);
        assert_eq!(at("forget_in_outer_sides")[0] + 1, at("EnsureRequirements")[0]);
        assert_eq!(at("ensure_order")[0] + 1, at("SanityCheckPlan")[0]);
        assert_eq!(names[names.len() - 2..], ["frugal_plans", "yield_in_joins"]);
    }
}
