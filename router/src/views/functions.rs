//! PostgreSQL's catalog functions over the snapshot of one statement, evaluated in the router.
//!
//! ```text
//!   format_type(1700, 655366)  numeric(10,2)      pg_get_userbyid(10)  the session's user
//! ```
//!
//! All are stable and take literals or catalog columns; none ever travels to a shard node.

use super::pg_catalog::type_name;
use super::{SystemSource, primary_key_oid};
use datafusion::arrow::datatypes::DataType;
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility};
use std::collections::HashMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

/// Value of one row from the arguments of that row.
type Evaluate = Arc<dyn Fn(&[ScalarValue]) -> ScalarValue + Send + Sync>;

/// A function evaluated row by row; catalogs are small.
struct CatalogFunction {
    name: &'static str,
    signature: Signature,
    returns: DataType,
    evaluate: Evaluate,
}

impl fmt::Debug for CatalogFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

// Names are unique within a session, so they are the identity.
impl PartialEq for CatalogFunction {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}
impl Eq for CatalogFunction {}
impl Hash for CatalogFunction {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl ScalarUDFImpl for CatalogFunction {
    fn name(&self) -> &str {
        self.name
    }
    fn signature(&self) -> &Signature {
        &self.signature
    }
    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(self.returns.clone())
    }
    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        if args.args.iter().all(|a| matches!(a, ColumnarValue::Scalar(_))) {
            let row: Vec<_> = args
                .args
                .into_iter()
                .filter_map(|a| {
                    if let ColumnarValue::Scalar(s) = a {
                        Some(s)
                    } else {
                        None
                    }
                })
                .collect();
            return Ok(ColumnarValue::Scalar((self.evaluate)(&row)));
        }
        let columns = ColumnarValue::values_to_arrays(&args.args)?;
        let values = (0..args.number_rows).map(|i| {
            let row = columns
                .iter()
                .map(|c| ScalarValue::try_from_array(c, i))
                .collect::<Result<Vec<_>>>()?;
            Ok((self.evaluate)(&row))
        });
        let values = values.collect::<Result<Vec<_>>>()?;
        if values.is_empty() {
            return Ok(ColumnarValue::Array(datafusion::arrow::array::new_empty_array(
                &self.returns,
            )));
        }
        Ok(ColumnarValue::Array(ScalarValue::iter_to_array(values)?))
    }
}

fn function(
    name: &'static str,
    returns: DataType,
    evaluate: impl Fn(&[ScalarValue]) -> ScalarValue + Send + Sync + 'static,
) -> ScalarUDF {
    let signature = Signature::one_of(
        vec![
            datafusion::logical_expr::TypeSignature::VariadicAny,
            datafusion::logical_expr::TypeSignature::Nullary,
        ],
        Volatility::Stable,
    );
    ScalarUDF::new_from_impl(CatalogFunction {
        name,
        signature,
        returns,
        evaluate: Arc::new(evaluate),
    })
}

fn text(value: Option<String>) -> ScalarValue {
    ScalarValue::Utf8(value)
}

/// An argument as a whole number; literals may come as text.
fn int(args: &[ScalarValue], i: usize) -> Option<i64> {
    args.get(i)?.to_string().parse().ok()
}

/// An argument as text; NULL is `None`.
fn string(args: &[ScalarValue], i: usize) -> Option<String> {
    let value = args.get(i)?;
    (!value.is_null()).then(|| value.to_string())
}

/// The functions for one statement.
pub fn functions(source: &SystemSource) -> Vec<ScalarUDF> {
    let mut all = session_functions(source);
    all.extend(definition_functions(source));
    all
}

/// Functions about the session and its surroundings.
fn session_functions(source: &SystemSource) -> Vec<ScalarUDF> {
    use DataType::{Boolean, Int64, Utf8};
    let user = |name| {
        let user = source.user.clone();
        function(name, Utf8, move |_| text(Some(user.clone())))
    };
    let database = source.database.clone();
    let fixed = |name, value: &'static str| function(name, Utf8, move |_| text(Some(value.into())));
    vec![
        user("pg_get_userbyid"),
        user("tessera_current_user"),
        function("current_database", Utf8, move |_| text(Some(database.clone()))),
        fixed("current_schema", "public"),
        fixed(
            "version",
            concat!("PostgreSQL 15.0 (Tessera ", env!("CARGO_PKG_VERSION"), ")"),
        ),
        fixed("pg_encoding_to_char", "UTF8"),
        fixed("pg_client_encoding", "UTF8"),
        function("pg_is_in_recovery", Boolean, |_| ScalarValue::Boolean(Some(false))),
        function("pg_table_is_visible", Boolean, {
            let visible: std::collections::HashSet<i64> = source
                .view
                .named_tables()
                .filter(|t| t.schema == "public")
                .flat_map(|t| [t.id.0 as i64, primary_key_oid(t.id)])
                .chain(
                    source
                        .view
                        .views
                        .values()
                        .filter(|v| v.schema == "public")
                        .map(|v| v.id.0 as i64),
                )
                .collect();
            move |args| ScalarValue::Boolean(int(args, 0).map(|oid| visible.contains(&oid)))
        }),
        function("pg_type_is_visible", Boolean, |_| ScalarValue::Boolean(Some(true))),
        function("pg_function_is_visible", Boolean, |_| ScalarValue::Boolean(Some(true))),
        function("has_table_privilege", Boolean, |_| ScalarValue::Boolean(Some(true))),
        function("has_database_privilege", Boolean, |_| ScalarValue::Boolean(Some(true))),
        function("has_schema_privilege", Boolean, |_| ScalarValue::Boolean(Some(true))),
        function("obj_description", Utf8, |_| text(None)),
        function("col_description", Utf8, |_| text(None)),
        function("shobj_description", Utf8, |_| text(None)),
        function("pg_backend_pid", Int64, {
            let session = i64::from(source.session);
            move |_| ScalarValue::Int64(Some(session))
        }),
        function("pg_size_pretty", Utf8, |args| text(int(args, 0).map(pretty))),
    ]
}

/// Functions that print definitions.
fn definition_functions(source: &SystemSource) -> Vec<ScalarUDF> {
    use DataType::{Int64, Utf8};
    let names = Arc::new(relation_names(source));
    let by_name: Arc<HashMap<String, i64>> = Arc::new(names.iter().map(|(oid, name)| (name.clone(), *oid)).collect());
    let keys = Arc::new(primary_keys(source));
    let sizes = Arc::new(table_sizes(source));
    let (indexes, constraints) = (keys.clone(), keys);
    let size = |name, sizes: Arc<HashMap<i64, i64>>| {
        function(name, Int64, move |args| {
            ScalarValue::Int64(int(args, 0).map(|oid| sizes.get(&oid).copied().unwrap_or(0)))
        })
    };
    let views: HashMap<i64, String> = source
        .view
        .views
        .values()
        .map(|v| (v.id.0 as i64, format!(" {};", v.query)))
        .collect();
    vec![
        function("format_type", Utf8, |args| {
            text(int(args, 0).map(|oid| type_name(oid, int(args, 1).unwrap_or(-1)).unwrap_or_else(|| "???".into())))
        }),
        function("pg_get_expr", Utf8, |args| text(string(args, 0))),
        function("pg_get_indexdef", Utf8, move |args| {
            text(int(args, 0).and_then(|oid| indexes.get(&oid).map(|k| k.index.clone())))
        }),
        function("pg_get_constraintdef", Utf8, move |args| {
            text(int(args, 0).and_then(|oid| constraints.get(&oid).map(|k| k.constraint.clone())))
        }),
        function("pg_get_viewdef", Utf8, move |args| {
            text(int(args, 0).and_then(|oid| views.get(&oid).cloned()))
        }),
        size("pg_table_size", sizes.clone()),
        size("pg_relation_size", sizes.clone()),
        size("pg_total_relation_size", sizes.clone()),
        function("pg_database_size", Int64, move |_| {
            ScalarValue::Int64(Some(sizes.values().sum()))
        }),
        function("tessera_regclass_name", Utf8, move |args| {
            text(int(args, 0).map(|oid| names.get(&oid).cloned().unwrap_or_else(|| oid.to_string())))
        }),
        function("tessera_regclass_oid", Int64, move |args| {
            let given = string(args, 0).unwrap_or_default();
            let bare = given
                .strip_prefix("public.")
                .unwrap_or(&given)
                .trim_matches('"')
                .to_owned();
            ScalarValue::Int64(given.parse().ok().or_else(|| by_name.get(&bare).copied()))
        }),
    ]
}

/// A primary key as two catalog functions print it.
struct PrimaryKey {
    index: String,
    constraint: String,
}

fn primary_keys(source: &SystemSource) -> HashMap<i64, PrimaryKey> {
    let keyed = source.view.named_tables().filter(|t| !t.primary_key.is_empty());
    keyed
        .map(|t| {
            let columns: Vec<_> = t.primary_key.iter().map(|&c| t.columns[c].name.as_str()).collect();
            let columns = columns.join(", ");
            let index = format!(
                "CREATE UNIQUE INDEX {}_pkey ON {}.{} USING btree ({columns})",
                t.name, t.schema, t.name
            );
            (
                primary_key_oid(t.id),
                PrimaryKey {
                    index,
                    constraint: format!("PRIMARY KEY ({columns})"),
                },
            )
        })
        .collect()
}

/// Relations by OID, with the schema where it is not `public`.
fn relation_names(source: &SystemSource) -> HashMap<i64, String> {
    let qualified = |schema: &str, name: &str| {
        if schema == "public" {
            name.to_owned()
        } else {
            format!("{schema}.{name}")
        }
    };
    let tables = source
        .view
        .named_tables()
        .map(|t| (t.id.0 as i64, qualified(&t.schema, &t.name)));
    let views = source
        .view
        .views
        .values()
        .map(|v| (v.id.0 as i64, qualified(&v.schema, &v.name)));
    tables.chain(views).collect()
}

/// Bytes of every table over all its copies.
fn table_sizes(source: &SystemSource) -> HashMap<i64, i64> {
    let mut sizes = HashMap::new();
    for table in source.statuses.values().flat_map(|s| &s.shards).flat_map(|s| &s.tables) {
        *sizes.entry(table.table as i64).or_insert(0) += table.bytes as i64;
    }
    sizes
}

/// As PostgreSQL's `pg_size_pretty`: 10240 bytes and more become kB, and so on.
fn pretty(bytes: i64) -> String {
    let mut size = bytes;
    for unit in ["bytes", "kB", "MB", "GB"] {
        if size.abs() < 10_240 {
            return format!("{size} {unit}");
        }
        size = (size + 512) / 1024;
    }
    format!("{size} TB")
}
