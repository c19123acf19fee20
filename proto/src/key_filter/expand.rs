//! Keys put into a leaf's plan, on the node that runs it.
//!
//! ```text
//!   __in_keys(k, 0, 0.1)   no keys    false
//!                          a list     k IN (3, 8) AND keys_0(k)               here keys_0 only says whose list it is
//!                          a set      k >= 3 AND k <= 900 AND keys_0(k)       the range is for pruning row groups
//!                          any        true
//! ```

use super::{KeySet, Members, placeholder};
use crate::error::{Error, Result};
use crate::v1;
use datafusion::arrow::datatypes::DataType;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::utils::take_function_args;
use datafusion::common::{Result as DfResult, ScalarValue};
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::{
    ColumnarValue, Expr, LogicalPlan, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility, in_list, lit,
};
use datafusion::physical_expr::ScalarFunctionExpr;
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::filter::{FilterExec, FilterExecBuilder};
use datafusion::physical_plan::{ExecutionPlan, PhysicalExpr};
use std::any::Any;
use std::collections::BTreeMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// `plan` with the keys in `sets` in place of the filters' names.
///
/// # Errors
/// 08P01 for malformed sets, or a filter without one.
pub fn expand(plan: LogicalPlan, sets: &[v1::KeySet]) -> Result<LogicalPlan> {
    if sets.is_empty() {
        return Ok(plan);
    }
    let read = |wire: &v1::KeySet| Ok((wire.number, Arc::new(KeySet::from_wire(wire)?)));
    let sets: BTreeMap<u32, Arc<KeySet>> = sets.iter().map(read).collect::<Result<_>>()?;
    let put = |expr: Expr| {
        let Some((key, number, share)) = placeholder(&expr) else {
            return Ok(Transformed::no(expr));
        };
        let missing = || Error::protocol(format!("the keys of filter {number} were not sent"));
        let set = sets.get(&number).ok_or_else(missing)?;
        Ok(Transformed::yes(condition(key.clone(), number, share, set)))
    };
    let expanded = plan.transform_up(|node| node.map_expressions(|expr| expr.transform_up(put)))?;
    Ok(expanded.data)
}

fn condition(key: Expr, number: u32, share: f64, set: &Arc<KeySet>) -> Expr {
    match &set.members {
        Members::None => lit(false),
        Members::Any => lit(true),
        Members::Few(_) | Members::Bits { .. } | Members::Bloom(_) => {
            let function = Arc::new(ScalarUDF::from(Member::new(number, share, set.clone())));
            let member = Expr::ScalarFunction(ScalarFunction::new_udf(function, vec![key.clone()]));
            match prunable(key, set) {
                Some(condition) => condition.and(member),
                None => member,
            }
        }
    }
}

/// What zone maps understand of it.
fn prunable(key: Expr, set: &KeySet) -> Option<Expr> {
    if let Members::Few(keys) = &set.members {
        return Some(in_list(key, keys.iter().cloned().map(lit).collect(), false));
    }
    let (min, max) = set.range.clone()?;
    Some(key.clone().gt_eq(lit(min)).and(key.lt_eq(lit(max))))
}

/// Whether a value is in a set.
#[derive(Debug)]
struct Member {
    name: String,
    number: u32,
    share: f64,
    keys: Arc<KeySet>,
    signature: Signature,
}

impl Member {
    fn new(number: u32, share: f64, keys: Arc<KeySet>) -> Self {
        Self {
            name: format!("keys_{number}"),
            number,
            share,
            keys,
            signature: Signature::any(1, Volatility::Immutable),
        }
    }
}

impl PartialEq for Member {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number && Arc::ptr_eq(&self.keys, &other.keys)
    }
}

impl Eq for Member {}

impl Hash for Member {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.number.hash(state);
    }
}

impl ScalarUDFImpl for Member {
    fn name(&self) -> &str {
        &self.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> DfResult<DataType> {
        Ok(DataType::Boolean)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> DfResult<ColumnarValue> {
        let [values] = take_function_args(self.name(), args.args)?;
        if let ColumnarValue::Scalar(value) = &values {
            let found = self.keys.contains(&value.to_array()?)?;
            return Ok(ColumnarValue::Scalar(ScalarValue::try_from_array(&found, 0)?));
        }
        let values = values.into_array(args.number_rows)?;
        Ok(ColumnarValue::Array(Arc::new(self.keys.contains(&values)?)))
    }
}

/// What the key filters in a plan that has run did: rows that came to an operator with them, and that it let through.
pub fn counts(plan: &dyn ExecutionPlan) -> Vec<v1::KeyCount> {
    let mut found: BTreeMap<u32, (u64, u64)> = BTreeMap::new();
    let mut open = vec![plan];
    while let Some(node) = open.pop() {
        if let Some(filter) = node.downcast_ref::<FilterExec>() {
            let (tested, kept) = (rows_of(filter.input().as_ref()), rows_of(filter));
            for number in members(filter.predicate()).into_keys() {
                let sum = found.entry(number).or_default();
                *sum = (sum.0 + tested, sum.1 + kept);
            }
        }
        open.extend(node.children().into_iter().map(AsRef::as_ref));
    }
    let count = |(number, (tested, kept))| v1::KeyCount { number, tested, kept };
    found.into_iter().map(count).collect()
}

/// Rows that an operator gave; one that does not count them passes on its input's.
fn rows_of(plan: &dyn ExecutionPlan) -> u64 {
    match (plan.metrics().and_then(|m| m.output_rows()), plan.children().as_slice()) {
        (Some(rows), _) => rows as u64,
        (None, [input]) => rows_of(input.as_ref()),
        (None, _) => 0,
    }
}

/// The filters in an expression, each with the share of rows that it is believed to keep.
fn members(predicate: &Arc<dyn PhysicalExpr>) -> BTreeMap<u32, f64> {
    let mut members = BTreeMap::new();
    // Never fails.
    let _ = predicate.apply(|expr| {
        let call = expr.downcast_ref::<ScalarFunctionExpr>();
        let member = call.and_then(|call| (call.fun().inner().as_ref() as &dyn Any).downcast_ref::<Member>());
        members.extend(member.map(|member| (member.number, member.share)));
        Ok(TreeNodeRecursion::Continue)
    });
    members
}

/// Gives operators with key filters their estimates, for the choice of join sides.
///
/// DataFusion takes a fifth for a function that it does not know, or a percentage that the operator is given; 1 is the least.
#[derive(Debug)]
pub struct EstimateKeyFilters;

impl PhysicalOptimizerRule for EstimateKeyFilters {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> DfResult<Arc<dyn ExecutionPlan>> {
        let estimated = plan.transform_up(|node| {
            let Some(filter) = node.downcast_ref::<FilterExec>() else {
                return Ok(Transformed::no(node));
            };
            let members = members(filter.predicate());
            if members.is_empty() {
                return Ok(Transformed::no(node));
            }
            let share: f64 = members.values().product();
            let percent = (share * 100.0).round().clamp(1.0, 100.0) as u8;
            let estimated = FilterExecBuilder::from(filter).with_default_selectivity(percent);
            Ok(Transformed::yes(Arc::new(estimated.build()?) as Arc<dyn ExecutionPlan>))
        })?;
        Ok(estimated.data)
    }

    fn name(&self) -> &str {
        "estimate_key_filters"
    }

    fn schema_check(&self) -> bool {
        true
    }
}
