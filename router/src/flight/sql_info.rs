//! What the server can do, as SqlInfo; and its types, as XDBC names them.
//!
//! JDBC's metadata reads some 75 of these and fails on a list that is missing, so the lists are all here. Whatever is not in the
//! table is not promised. Source: `FlightSql.proto` of Arrow 15.

use arrow_flight::sql::metadata::{
    SqlInfoData, SqlInfoDataBuilder, XdbcTypeInfo, XdbcTypeInfoData, XdbcTypeInfoDataBuilder,
};
use arrow_flight::sql::{
    Nullable, Searchable, SqlInfo, SqlNullOrdering, SqlSupportedCaseSensitivity, SqlSupportedTransaction,
    SqlSupportsConvert, SqlTransactionIsolationLevel, XdbcDataType,
};
use datafusion::execution::FunctionRegistry;
use std::collections::HashMap;
use std::sync::LazyLock;
use tessera_proto::{Error, Result};

/// Bits of lists that SqlInfo gives as one number.
const NONE: i32 = 0;

static INFO: LazyLock<Result<SqlInfoData>> = LazyLock::new(|| {
    let mut info = SqlInfoDataBuilder::new();
    server(&mut info);
    language(&mut info);
    limits(&mut info);
    info.build().map_err(|e| Error::internal(format!("SqlInfo: {e}")))
});

static TYPES: LazyLock<Result<XdbcTypeInfoData>> = LazyLock::new(|| {
    let mut types = XdbcTypeInfoDataBuilder::new();
    xdbc_types().into_iter().for_each(|t| types.append(t));
    types.build().map_err(|e| Error::internal(format!("XDBC types: {e}")))
});

/// All of it.
///
/// # Errors
/// None is expected.
pub(super) fn sql_info() -> Result<&'static SqlInfoData> {
    INFO.as_ref().map_err(Error::clone)
}

/// The types.
///
/// # Errors
/// None is expected.
pub(super) fn types() -> Result<&'static XdbcTypeInfoData> {
    TYPES.as_ref().map_err(Error::clone)
}

fn server(info: &mut SqlInfoDataBuilder) {
    use SqlInfo as I;
    info.append(I::FlightSqlServerName, "Tessera");
    info.append(I::FlightSqlServerVersion, env!("CARGO_PKG_VERSION"));
    info.append(I::FlightSqlServerArrowVersion, datafusion::arrow::ARROW_VERSION);
    info.append(I::FlightSqlServerReadOnly, false);
    info.append(I::FlightSqlServerSql, true);
    info.append(I::FlightSqlServerSubstrait, false);
    info.append(I::FlightSqlServerTransaction, SqlSupportedTransaction::None as i32);
    // By dropping the stream; there is no call for it.
    info.append(I::FlightSqlServerCancel, false);
    info.append(I::FlightSqlServerBulkIngestion, true);
    info.append(I::FlightSqlServerIngestTransactionsSupported, false);
    info.append(I::FlightSqlServerStatementTimeout, 0);
    info.append(I::FlightSqlServerTransactionTimeout, 0);
}

fn language(info: &mut SqlInfoDataBuilder) {
    use SqlInfo as I;
    let (lower, exact) = (
        SqlSupportedCaseSensitivity::SqlCaseSensitivityLowercase as i32,
        SqlSupportedCaseSensitivity::SqlCaseSensitivityCaseInsensitive as i32,
    );
    for (name, value) in [
        (I::SqlDdlCatalog, false),
        (I::SqlDdlSchema, true),
        (I::SqlDdlTable, true),
    ] {
        info.append(name, value);
    }
    info.append(I::SqlIdentifierCase, lower);
    info.append(I::SqlIdentifierQuoteChar, "\"");
    info.append(I::SqlQuotedIdentifierCase, exact);
    info.append(I::SqlAllTablesAreSelectable, true);
    info.append(I::SqlNullOrdering, SqlNullOrdering::SqlNullsSortedHigh as i32);
    info.append(I::SqlKeywords, &["SHARD", "SHARDS", "REFERENCE", "COLOCATE"][..]);
    let functions = functions();
    let named = |words: &[&str]| -> Vec<String> {
        let is = |name: &&String| words.contains(&name.as_str());
        functions.iter().filter(is).cloned().collect()
    };
    info.append(I::SqlNumericFunctions, named(NUMERIC));
    info.append(I::SqlStringFunctions, named(STRING));
    info.append(I::SqlSystemFunctions, named(SYSTEM));
    info.append(I::SqlDatetimeFunctions, named(DATETIME));
    info.append(I::SqlSearchStringEscape, "\\");
    info.append(I::SqlExtraNameCharacters, "");
    info.append(I::SqlSupportsColumnAliasing, true);
    info.append(I::SqlNullPlusNullIsNull, true);
    info.append(I::SqlSupportsConvert, conversions());
    for name in [
        I::SqlSupportsTableCorrelationNames,
        I::SqlSupportsExpressionsInOrderBy,
        I::SqlSupportsOrderByUnrelated,
        I::SqlSupportsLikeEscapeClause,
        I::SqlSupportsNonNullableColumns,
    ] {
        info.append(name, true);
    }
    for name in [
        I::SqlSupportsDifferentTableCorrelationNames,
        I::SqlSupportsIntegrityEnhancementFacility,
        I::SqlCatalogAtStart,
        I::SqlSelectForUpdateSupported,
        I::SqlStoredProceduresSupported,
        I::SqlTransactionsSupported,
        I::SqlDataDefinitionCausesTransactionCommit,
        I::SqlDataDefinitionsInTransactionsIgnored,
        I::SqlBatchUpdatesSupported,
        I::SqlSavepointsSupported,
        I::SqlNamedParametersSupported,
        I::SqlLocatorsUpdateCopy,
        I::SqlStoredFunctionsUsingCallSyntaxSupported,
    ] {
        info.append(name, false);
    }
    // GROUP BY anything: bits 0 and 1; unions: UNION and UNION ALL.
    info.append(I::SqlSupportedGroupBy, 3);
    info.append(I::SqlSupportedUnions, 3);
    info.append(I::SqlSupportedGrammar, 1);
    info.append(I::SqlAnsi92SupportedLevel, 1);
    info.append(I::SqlOuterJoinsSupportLevel, 7);
    info.append(I::SqlSchemaTerm, "schema");
    info.append(I::SqlProcedureTerm, "");
    info.append(I::SqlCatalogTerm, "database");
    // DML, procedures, definitions, indexes, privileges: schemas may be named in the first and third.
    info.append(I::SqlSchemasSupportedActions, 5);
    for name in [I::SqlCatalogsSupportedActions, I::SqlSupportedPositionedCommands] {
        info.append(name, NONE);
    }
    info.append(I::SqlSupportedSubqueries, 15);
    info.append(I::SqlCorrelatedSubqueriesSupported, true);
    info.append(
        I::SqlDefaultTransactionIsolation,
        SqlTransactionIsolationLevel::SqlTransactionNone as i32,
    );
    info.append(I::SqlSupportedTransactionsIsolationLevels, NONE);
    info.append(I::SqlSupportedResultSetTypes, 2);
    for name in [
        I::SqlSupportedConcurrenciesForResultSetUnspecified,
        I::SqlSupportedConcurrenciesForResultSetForwardOnly,
        I::SqlSupportedConcurrenciesForResultSetScrollSensitive,
        I::SqlSupportedConcurrenciesForResultSetScrollInsensitive,
    ] {
        info.append(name, NONE);
    }
}

/// 0 where there is no limit, or none that is known.
fn limits(info: &mut SqlInfoDataBuilder) {
    use SqlInfo as I;
    for name in [
        I::SqlMaxBinaryLiteralLength,
        I::SqlMaxCharLiteralLength,
        I::SqlMaxColumnNameLength,
        I::SqlMaxColumnsInGroupBy,
        I::SqlMaxColumnsInIndex,
        I::SqlMaxColumnsInOrderBy,
        I::SqlMaxColumnsInSelect,
        I::SqlMaxConnections,
        I::SqlMaxCursorNameLength,
        I::SqlMaxIndexLength,
        I::SqlDbSchemaNameLength,
        I::SqlMaxProcedureNameLength,
        I::SqlMaxCatalogNameLength,
        I::SqlMaxRowSize,
        I::SqlMaxStatements,
        I::SqlMaxTableNameLength,
        I::SqlMaxTablesInSelect,
        I::SqlMaxUsernameLength,
    ] {
        info.append(name, 0_i64);
    }
    info.append(I::SqlMaxColumnsInTable, tessera_proto::table::COLUMNS_MAX as i64);
    info.append(I::SqlMaxStatementLength, tessera_parser::TEXT_BYTES_MAX as i64);
    info.append(I::SqlMaxRowSizeIncludesBlobs, true);
}

/// Names of JDBC's own list; what of it the engine has is told.
const NUMERIC: &[&str] = &[
    "abs", "acos", "asin", "atan", "atan2", "ceil", "cos", "cot", "degrees", "exp", "floor", "log", "log10", "pi",
    "power", "radians", "random", "round", "sign", "sin", "sqrt", "tan", "trunc",
];
const STRING: &[&str] = &[
    "ascii", "chr", "concat", "left", "length", "lower", "ltrim", "repeat", "replace", "right", "rtrim", "strpos",
    "substr", "upper",
];
const SYSTEM: &[&str] = &["coalesce", "current_database", "nullif", "version"];
const DATETIME: &[&str] = &[
    "current_date",
    "current_time",
    "date_part",
    "date_trunc",
    "now",
    "to_timestamp",
];

fn functions() -> Vec<String> {
    let mut names: Vec<String> = datafusion::prelude::SessionContext::new().udfs().into_iter().collect();
    names.sort();
    names
}

/// Which types CAST takes to which: numbers and text among each other.
fn conversions() -> HashMap<i32, Vec<i32>> {
    use SqlSupportsConvert as C;
    let kinds = [
        C::SqlConvertBigint,
        C::SqlConvertInteger,
        C::SqlConvertSmallint,
        C::SqlConvertReal,
        C::SqlConvertFloat,
        C::SqlConvertDecimal,
        C::SqlConvertNumeric,
        C::SqlConvertVarchar,
    ]
    .map(|kind| kind as i32);
    kinds.into_iter().map(|kind| (kind, kinds.to_vec())).collect()
}

/// Name, type, size, radix, whether it is quoted, parameters.
type XdbcRow = (
    &'static str,
    XdbcDataType,
    i32,
    Option<i32>,
    bool,
    &'static [&'static str],
);

fn xdbc_types() -> Vec<XdbcTypeInfo> {
    use XdbcDataType as X;
    let types: [XdbcRow; 15] = [
        ("bigint", X::XdbcBigint, 64, Some(2), false, &[]),
        ("integer", X::XdbcInteger, 32, Some(2), false, &[]),
        ("smallint", X::XdbcSmallint, 16, Some(2), false, &[]),
        ("real", X::XdbcReal, 24, Some(2), false, &[]),
        ("double precision", X::XdbcDouble, 53, Some(2), false, &[]),
        ("numeric", X::XdbcNumeric, 38, Some(10), false, &["precision", "scale"]),
        ("boolean", X::XdbcBit, 1, None, false, &[]),
        ("text", X::XdbcVarchar, i32::MAX, None, true, &[]),
        ("character varying", X::XdbcVarchar, 10_485_760, None, true, &["length"]),
        ("character", X::XdbcChar, 10_485_760, None, true, &["length"]),
        ("bytea", X::XdbcVarbinary, i32::MAX, None, true, &[]),
        ("date", X::XdbcDate, 10, None, true, &[]),
        ("time without time zone", X::XdbcTime, 15, None, true, &[]),
        ("timestamp without time zone", X::XdbcTimestamp, 26, None, true, &[]),
        ("timestamp with time zone", X::XdbcTimestamp, 32, None, true, &[]),
    ];
    let info = |(name, data_type, size, radix, quoted, params): XdbcRow| {
        let quote = quoted.then(|| "'".to_owned());
        XdbcTypeInfo {
            type_name: name.to_owned(),
            data_type,
            column_size: Some(size),
            literal_prefix: quote.clone(),
            literal_suffix: quote,
            create_params: (!params.is_empty()).then(|| params.iter().map(|p| (*p).to_owned()).collect()),
            nullable: Nullable::NullabilityNullable,
            case_sensitive: quoted,
            searchable: Searchable::Full,
            unsigned_attribute: radix.map(|_| false),
            fixed_prec_scale: false,
            auto_increment: Some(false),
            local_type_name: Some(name.to_owned()),
            minimum_scale: None,
            maximum_scale: None,
            sql_data_type: data_type,
            datetime_subcode: None,
            num_prec_radix: radix,
            interval_precision: None,
        }
    };
    types.into_iter().map(info).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_builds_and_no_list_is_missing() {
        let all = sql_info().expect("builds").record_batch([]).expect("a batch");
        assert!(all.num_rows() > 80, "{}", all.num_rows());
        assert!(functions().iter().any(|name| name == "sqrt"));
        let types = types().expect("builds").record_batch(None).expect("a batch");
        assert_eq!(types.num_rows(), 15);
    }
}
