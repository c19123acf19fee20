//! `unnest` of arrays of arrays is refused: PostgreSQL gives their elements, DataFusion the arrays inside.
//!
//! ```text
//!   unnest(ARRAY[[1,2],[3,4]])     PostgreSQL 1 2 3 4     DataFusion {1,2} {3,4}
//!   regexp_matches(t, '(.)', 'g')  arrays, one a match    as in PostgreSQL
//! ```

use datafusion::logical_expr::LogicalPlan;
use tessera_proto::functions::rows::named;
use tessera_proto::{Error, Result};

/// Refuses an operator that would give arrays.
///
/// # Errors
/// 0A000.
pub(super) fn check(plan: &LogicalPlan) -> Result<()> {
    let LogicalPlan::Unnest(unnest) = plan else {
        return Ok(());
    };
    // Its rows are arrays, too.
    let matches = named("regexp_matches").unwrap_or_default();
    let nested = unnest.list_type_columns.iter().any(|(at, list)| {
        let input = unnest.input.schema().field(*at).name();
        let output = unnest.schema.field_with_unqualified_name(&list.output_column.name);
        output.is_ok_and(|field| field.data_type().is_list()) && !input.contains(matches)
    });
    match nested {
        true => Err(Error::unsupported(
            "unnest of arrays of arrays is not supported",
            "name what is inside by its subscripts: (a)[1][2]",
        )),
        false => Ok(()),
    }
}
