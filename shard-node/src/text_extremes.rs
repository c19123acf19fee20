//! `min` and `max` of short texts without looking at them as texts.
//!
//! ```text
//!   array of views      all of at most 12 bytes?  ── yes ──▶ compare views as 128-bit numbers ──▶ one value ─┐
//!                                                 └─ no ───▶ the whole array ────────────────────────────────┴▶ DataFusion's
//! ```
//!
//! A view of at most 12 bytes holds its text, and [`StringViewArray::inline_key_fast`] makes a number of it that sorts as
//! the text does. Arrow's kernel decides for each pair anew which kind of view it has; where a column is short throughout
//! (names, codes, flags) that was two thirds of an aggregate over a million rows.
//!
//! Only accumulators without groups: with groups DataFusion keeps bytes per group, and hashing dominates. Only leaves of
//! this node have these; they are found by name, as plans name them, and are DataFusion's own in all else.

use datafusion::arrow::array::{Array, ArrayRef, AsArray, StringViewArray};
use datafusion::arrow::datatypes::{DataType, FieldRef};
use datafusion::common::{Result, ScalarValue};
use datafusion::functions_aggregate::min_max::{max_udaf, min_udaf};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::AggregateOrderSensitivity;
use datafusion::logical_expr::{
    Accumulator, AggregateUDF, AggregateUDFImpl, Documentation, GroupsAccumulator, ReversedUDAF, SetMonotonicity,
    Signature, StatisticsArgs,
};
use std::sync::Arc;

/// Longest text that a view holds itself.
const INLINE_BYTES: u32 = 12;

/// `min` and `max`, to be registered after DataFusion's.
pub fn functions() -> [Arc<AggregateUDF>; 2] {
    [(min_udaf(), false), (max_udaf(), true)]
        .map(|(known, greatest)| Arc::new(AggregateUDF::from(Extreme { known, greatest })))
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Extreme {
    known: Arc<AggregateUDF>,
    greatest: bool,
}

impl AggregateUDFImpl for Extreme {
    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        let short = matches!(args.return_field.data_type(), DataType::Utf8View);
        let known = self.known.accumulator(args)?;
        Ok(match short {
            true => Box::new(ShortTexts {
                known,
                greatest: self.greatest,
            }),
            false => known,
        })
    }

    fn name(&self) -> &str {
        self.known.name()
    }

    fn signature(&self) -> &Signature {
        self.known.signature()
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        self.known.return_type(arguments)
    }

    fn return_field(&self, arguments: &[FieldRef]) -> Result<FieldRef> {
        self.known.return_field(arguments)
    }

    fn is_nullable(&self) -> bool {
        self.known.is_nullable()
    }

    fn coerce_types(&self, arguments: &[DataType]) -> Result<Vec<DataType>> {
        self.known.inner().coerce_types(arguments)
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        self.known.inner().state_fields(args)
    }

    fn groups_accumulator_supported(&self, args: AccumulatorArgs) -> bool {
        self.known.groups_accumulator_supported(args)
    }

    fn create_groups_accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn GroupsAccumulator>> {
        self.known.create_groups_accumulator(args)
    }

    fn create_sliding_accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        self.known.create_sliding_accumulator(args)
    }

    fn order_sensitivity(&self) -> AggregateOrderSensitivity {
        self.known.order_sensitivity()
    }

    fn reverse_expr(&self) -> ReversedUDAF {
        self.known.reverse_udf()
    }

    fn is_descending(&self) -> Option<bool> {
        self.known.is_descending()
    }

    fn value_from_stats(&self, args: &StatisticsArgs) -> Option<ScalarValue> {
        self.known.value_from_stats(args)
    }

    fn set_monotonicity(&self, data_type: &DataType) -> SetMonotonicity {
        self.known.inner().set_monotonicity(data_type)
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.known.documentation()
    }
}

#[derive(Debug)]
struct ShortTexts {
    known: Box<dyn Accumulator>,
    greatest: bool,
}

impl ShortTexts {
    fn reduce(&self, values: &[ArrayRef]) -> Option<ArrayRef> {
        let [array] = values else { return None };
        let at = extreme(array.as_string_view_opt()?, self.greatest)?;
        Some(array.slice(at, 1))
    }
}

impl Accumulator for ShortTexts {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        match self.reduce(values) {
            Some(value) => self.known.update_batch(&[value]),
            None => self.known.update_batch(values),
        }
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        self.known.merge_batch(states)
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        self.known.evaluate()
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        self.known.state()
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.known.size()
    }
}

/// Where the least or the greatest text is, or `None` where some text is too long to tell, or none is there. NULLs do not
/// count.
fn extreme(texts: &StringViewArray, greatest: bool) -> Option<usize> {
    let views = texts.views();
    let best = match texts.nulls().filter(|nulls| nulls.null_count() > 0) {
        // Lengths first, apart: both loops are then simple enough for the compiler to run several steps at once.
        None if views.iter().all(is_inline) && greatest => views.iter().copied().map(key).max(),
        None if views.iter().all(is_inline) => views.iter().copied().map(key).min(),
        None => None,
        Some(nulls) => {
            let mut there = nulls.valid_indices().map(|at| &views[at]);
            let first = key(*there.next()?);
            let better = if greatest { u128::max } else { u128::min };
            let all_inline = nulls.valid_indices().all(|at| is_inline(&views[at]));
            all_inline.then(|| there.fold(first, |best, view| better(best, key(*view))))
        }
    }?;
    views
        .iter()
        .enumerate()
        .position(|(at, view)| key(*view) == best && is_inline(view) && texts.is_valid(at))
}

fn is_inline(view: &u128) -> bool {
    // The low 32 bits of a view are its length.
    *view as u32 <= INLINE_BYTES
}

fn key(view: u128) -> u128 {
    StringViewArray::inline_key_fast(view)
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::arrow::compute::{max_string_view, min_string_view};

    fn check(texts: &StringViewArray) {
        for (greatest, oracle) in [(false, min_string_view(texts)), (true, max_string_view(texts))] {
            let long = texts.iter().flatten().any(|text| text.len() > INLINE_BYTES as usize);
            let at = extreme(texts, greatest);
            assert_eq!(at.is_none(), long || oracle.is_none(), "{texts:?}");
            if let Some(at) = at {
                assert!(texts.is_valid(at));
                assert_eq!(Some(texts.value(at)), oracle, "{texts:?}");
            }
            let udaf = &functions()[usize::from(greatest)];
            let mut accumulator = ShortTexts {
                known: accumulator_of(udaf),
                greatest,
            };
            let halves = [
                texts.slice(0, texts.len() / 2),
                texts.slice(texts.len() / 2, texts.len().div_ceil(2)),
            ];
            for half in halves {
                accumulator.update_batch(&[Arc::new(half)]).unwrap();
            }
            let expected = ScalarValue::Utf8View(oracle.map(str::to_owned));
            assert_eq!(accumulator.evaluate().unwrap(), expected);
        }
    }

    fn accumulator_of(udaf: &AggregateUDF) -> Box<dyn Accumulator> {
        use datafusion::arrow::datatypes::{Field, Schema};
        use datafusion::physical_expr::expressions::col;
        let field = Arc::new(Field::new("t", DataType::Utf8View, true));
        let schema = Schema::new(vec![field.clone()]);
        udaf.accumulator(AccumulatorArgs {
            return_field: field.clone(),
            schema: &schema,
            ignore_nulls: false,
            order_bys: &[],
            is_reversed: false,
            name: udaf.name(),
            is_distinct: false,
            exprs: &[col("t", &schema).unwrap()],
            expr_fields: &[field],
        })
        .unwrap()
    }

    #[test]
    fn finds_what_arrow_finds() {
        let words = [
            "",
            "\0",
            "\0\0",
            "a",
            "a\0",
            "ab",
            "b",
            "bar",
            "bar\0",
            "exactly12byt",
            "exactly12bzt",
            "zz",
            "\u{e9}",
            "\u{10ffff}",
        ];
        let long = "exactly12bytes and more";
        check(&StringViewArray::from(Vec::<Option<&str>>::new()));
        check(&StringViewArray::from(vec![None::<&str>, None]));
        for i in 0..words.len() {
            check(&StringViewArray::from(vec![Some(words[i])]));
            check(&StringViewArray::from(vec![None, Some(words[i]), None]));
            for j in 0..words.len() {
                check(&StringViewArray::from(vec![words[i], words[j]]));
                check(&StringViewArray::from(vec![Some(words[i]), None, Some(words[j])]));
                check(&StringViewArray::from(vec![Some(words[i]), Some(long), Some(words[j])]));
            }
        }
        check(&StringViewArray::from(words.to_vec()));
        check(&StringViewArray::from(words.to_vec()).slice(3, 5));
    }

    /// What is below a NULL may be anything, also a view that would win.
    #[test]
    fn passes_over_what_is_below_a_null() {
        use datafusion::arrow::buffer::NullBuffer;
        let (views, buffers, _) =
            StringViewArray::from(vec!["m", "z", "a", "k", "far more than twelve bytes"]).into_parts();
        let nulls = NullBuffer::from(vec![true, false, false, true, false]);
        check(&StringViewArray::new(views, buffers, Some(nulls)));
    }

    #[test]
    fn keeps_the_name_by_which_plans_find_it() {
        assert_eq!(functions().map(|f| f.name().to_owned()), ["min", "max"]);
    }
}
