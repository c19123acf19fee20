//! sqlparser's PostgreSQL dialect with a bound on the work one statement may cause.
//!
//! ```text
//!   ARRAY[ARRAY[ARRAY[ ... x y      sqlparser reads each level as an array, fails at y, and reads it again as a
//!                                   subscript of a column "array": 2 attempts a level, 2^n for n levels
//! ```
//!
//! Every attempt starts with the first operand of an expression, and sqlparser asks the dialect there whether it wants
//! to read it itself. We never do, and count the questions. Past the bound we answer "too deep", which ends all attempts.
//!
//! Everything else is handed on to [`PostgreSqlDialect`], method by method, those it overrides in sqlparser 0.62: a new
//! version of sqlparser is the time to compare the lists.

use std::any::TypeId;
use std::cell::Cell;

use sqlparser::ast::{BinaryOperator, Expr};
use sqlparser::dialect::{Dialect, PostgreSqlDialect, Precedence};
use sqlparser::keywords::Keyword;
use sqlparser::parser::{Parser, ParserError};

/// Attempts for each token of a statement. A text without errors needs one to three; the rest is for backtracking.
const ATTEMPTS_PER_TOKEN: usize = 32;

/// Attempts for any statement, so that short ones with an error deep inside still name its place.
const ATTEMPTS_MIN: usize = 20_000;

/// PostgreSQL's dialect for one statement.
#[derive(Debug)]
pub(crate) struct BoundedDialect {
    inner: PostgreSqlDialect,
    attempts_left: Cell<usize>,
}

impl BoundedDialect {
    /// For a statement of `tokens` tokens.
    pub(crate) fn new(tokens: usize) -> Self {
        let attempts = tokens.saturating_mul(ATTEMPTS_PER_TOKEN).max(ATTEMPTS_MIN);
        Self {
            inner: PostgreSqlDialect {},
            attempts_left: Cell::new(attempts),
        }
    }
}

impl BoundedDialect {
    /// What follows `BETWEEN SYMMETRIC` or `BETWEEN ASYMMETRIC`.
    fn between(
        &self,
        parser: &mut Parser<'_>,
        operand: &Expr,
        negated: bool,
        symmetric: bool,
    ) -> Result<Expr, ParserError> {
        let low = parser.parse_subexpr(self.prec_value(Precedence::Between))?;
        parser.expect_keyword(Keyword::AND)?;
        let high = parser.parse_subexpr(self.prec_value(Precedence::Between))?;
        let between = |low: &Expr, high: &Expr| Expr::Between {
            expr: Box::new(operand.clone()),
            negated,
            low: Box::new(low.clone()),
            high: Box::new(high.clone()),
        };
        if !symmetric {
            return Ok(between(&low, &high));
        }
        let op = match negated {
            true => BinaryOperator::And,
            false => BinaryOperator::Or,
        };
        Ok(Expr::Nested(Box::new(Expr::BinaryOp {
            left: Box::new(between(&low, &high)),
            op,
            right: Box::new(between(&high, &low)),
        })))
    }
}

/// Hands methods without arguments on.
macro_rules! delegate {
    ($($method:ident)*) => {
        $(fn $method(&self) -> bool {
            self.inner.$method()
        })*
    };
}

impl Dialect for BoundedDialect {
    /// sqlparser asks for the type where a rule is PostgreSQL's alone.
    fn dialect(&self) -> TypeId {
        TypeId::of::<PostgreSqlDialect>()
    }

    fn parse_prefix(&self, _: &mut Parser<'_>) -> Option<Result<Expr, ParserError>> {
        match self.attempts_left.get().checked_sub(1) {
            Some(left) => {
                self.attempts_left.set(left);
                None
            }
            None => Some(Err(ParserError::RecursionLimitExceeded)),
        }
    }

    /// sqlparser reads everything that follows `IS DISTINCT FROM` as its right side, `AND` and `OR` included, and does not
    /// know `BETWEEN SYMMETRIC`.
    fn parse_infix(&self, parser: &mut Parser<'_>, left: &Expr, _: u8) -> Option<Result<Expr, ParserError>> {
        use Keyword::{ASYMMETRIC, BETWEEN, DISTINCT, FROM, IS, NOT, SYMMETRIC};
        for (keywords, negated, symmetric) in [
            (&[BETWEEN, SYMMETRIC][..], false, true),
            (&[NOT, BETWEEN, SYMMETRIC][..], true, true),
            (&[BETWEEN, ASYMMETRIC][..], false, false),
            (&[NOT, BETWEEN, ASYMMETRIC][..], true, false),
        ] {
            if parser.parse_keywords(keywords) {
                return Some(self.between(parser, left, negated, symmetric));
            }
        }
        let is_negated = parser.parse_keywords(&[IS, NOT, DISTINCT, FROM]);
        if !is_negated && !parser.parse_keywords(&[IS, DISTINCT, FROM]) {
            return None;
        }
        let right = parser.parse_subexpr(self.prec_value(Precedence::Is));
        Some(right.map(|right| {
            let (left, right) = (Box::new(left.clone()), Box::new(right));
            match is_negated {
                true => Expr::IsNotDistinctFrom(left, right),
                false => Expr::IsDistinctFrom(left, right),
            }
        }))
    }

    fn identifier_quote_style(&self, identifier: &str) -> Option<char> {
        self.inner.identifier_quote_style(identifier)
    }

    fn is_delimited_identifier_start(&self, ch: char) -> bool {
        self.inner.is_delimited_identifier_start(ch)
    }

    fn is_identifier_start(&self, ch: char) -> bool {
        self.inner.is_identifier_start(ch)
    }

    fn is_identifier_part(&self, ch: char) -> bool {
        self.inner.is_identifier_part(ch)
    }

    fn is_reserved_for_identifier(&self, keyword: Keyword) -> bool {
        self.inner.is_reserved_for_identifier(keyword)
    }

    fn is_custom_operator_part(&self, ch: char) -> bool {
        self.inner.is_custom_operator_part(ch)
    }

    fn get_next_precedence(&self, parser: &Parser<'_>) -> Option<Result<u8, ParserError>> {
        self.inner.get_next_precedence(parser)
    }

    fn prec_value(&self, precedence: Precedence) -> u8 {
        self.inner.prec_value(precedence)
    }

    delegate! {
        supports_unicode_string_literal supports_filter_during_aggregation supports_group_by_expr allow_extract_custom
        allow_extract_single_quotes supports_create_index_with_clause supports_explain_with_utility_options
        supports_listen_notify supports_factorial_operator supports_bitwise_shift_operators supports_comment_on
        supports_load_extension supports_named_fn_args_with_colon_operator supports_named_fn_args_with_expr_name
        supports_empty_projections supports_nested_comments supports_string_escape_constant
        supports_numeric_literal_underscores supports_array_typedef_with_brackets supports_geometric_types
        supports_set_names supports_alter_column_type_using supports_notnull_operator supports_interval_options
        supports_insert_table_alias supports_create_table_like_parenthesized supports_select_wildcard_with_alias
        supports_comma_separated_trim supports_xml_expressions supports_comment_optimizer_hint
    }
}
