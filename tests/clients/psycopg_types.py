"""Every SQL type through psycopg 3, as parameter and as result, in text and in binary; cancel.

    python psycopg_types.py postgres://user@host:port/database

Below psycopg's adapters, on its libpq wrapper, so that every value and both formats of it are sent exactly as written here:

    text  --> $1::type --> text     must be the canonical text
          |            \\-> binary --> $1::type (binary) --> text     must be it again
          \\-> INSERT into a column of the type, by both formats --> SELECT in both formats, and by psycopg's own adapters

The expected texts are PostgreSQL 15's: the script
passes against it, except that it accepts what REFUSED lists.
"""

import datetime
import decimal
import math
import sys
import threading
import time
import uuid

import psycopg
from psycopg import pq

# type: OID, then values as text; where the output differs from the input: (input, output).
CASES = {
    "boolean": (16, ["t", "f", ("true", "t"), ("off", "f")]),
    "smallint": (21, ["-32768", "-1", "0", "32767"]),
    "integer": (23, ["-2147483648", "0", "2147483647"]),
    "bigint": (20, ["-9223372036854775808", "0", "9223372036854775807"]),
    "real": (
        700,
        ["0", "-0", "1.5", "0.1", "3.4028235e+38", "1e-45", "1.1754944e-38", "Infinity", "-Infinity", "NaN", "1e+06", "123456"],
    ),
    "double precision": (
        701,
        [
            "0",
            "-0",
            "0.1",
            "1.7976931348623157e+308",
            "-1.7976931348623157e+308",
            "5e-324",
            "2.2250738585072014e-308",
            "Infinity",
            "-Infinity",
            "NaN",
            "1e+15",
            "100000000000000",
            "0.0001",
            "1e-05",
        ],
    ),
    "numeric(38,10)": (
        1700,
        [
            ("0", "0.0000000000"),
            ("-1.1", "-1.1000000000"),
            "0.0000000001",
            "9999999999999999999999999999.9999999999",
            "-9999999999999999999999999999.9999999999",
            ("1e3", "1000.0000000000"),
            "10000.0001000000",
        ],
    ),
    "numeric(38,0)": (1700, ["0", "1", "-1", "99999999999999999999999999999999999999", "-99999999999999999999999999999999999999"]),
    "numeric(38,38)": (1700, ["0." + "0" * 37 + "1", "-0." + "9" * 38]),
    "text": (25, ["", "a", " trailing ", "grüezi 🦀", "tab\tnew\nline", "quote ' \" \\ {} NULL", "x" * 100_000]),
    "varchar(5)": (1043, ["", "ab", "grüzi", "  "]),
    "char(5)": (1042, [("ab", "ab   "), ("", "     "), "grüzi"]),
    "date": (
        1082,
        [
            "1970-01-01",
            "2000-01-01",
            "1999-12-31",
            "2024-02-29",
            "0001-01-01",
            "9999-12-31",
            "0001-12-31 BC",
            "4714-11-24 BC",
            "5874897-12-31",
            "infinity",
            "-infinity",
        ],
    ),
    "time": (1083, ["00:00:00", "23:59:59.999999", "12:34:56.7", "24:00:00"]),
    "timestamp": (
        1114,
        [
            "1970-01-01 00:00:00",
            "1999-12-31 23:59:59.999999",
            "2024-02-29 12:00:00.5",
            "0001-01-01 00:00:00",
            "9999-12-31 23:59:59.999999",
            "4714-11-24 00:00:00 BC",
            "294247-01-01 00:00:00",
            "infinity",
            "-infinity",
        ],
    ),
    "timestamptz": (
        1184,
        [
            "1970-01-01 00:00:00+00",
            ("2024-07-01 12:00:00+02", "2024-07-01 10:00:00+00"),
            "1999-12-31 23:59:59.999999+00",
            "4714-11-24 00:00:00+00 BC",
            "294247-01-01 00:00:00+00",
            "infinity",
            "-infinity",
        ],
    ),
    "interval": (
        1186,
        [
            "00:00:00",
            "1 mon",
            "1 year 2 mons 3 days 04:05:06.789",
            "-1 mons",
            "-1 days +02:03:04",
            "-00:00:00.000001",
            "178000000 years",
            "24:00:00",
            "2147483647 days",
        ],
    ),
    "bytea": (17, ["\\x", "\\x00ff", "\\x" + "5c" * 10_000, ("a\\000b", "\\x610062")]),
    "uuid": (
        2950,
        [
            "00000000-0000-0000-0000-000000000000",
            "ffffffff-ffff-ffff-ffff-ffffffffffff",
            ("{A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11}", "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
        ],
    ),
}

# In PostgreSQL, but without a place in Arrow's types: refused, never changed. Microseconds since 1970 end before those
# since 2000 do.
REFUSED = {
    "timestamp": ["294276-12-31 23:59:59.999999"],
    "timestamptz": ["294276-12-31 23:59:59.999999+00"],
    "numeric(38,10)": ["NaN", "Infinity"],
    "interval": ["3000000 hours"],
}

failures = []
checks = 0


def check(what, got, expected):
    global checks
    checks += 1
    if got != expected:
        failures.append(f"{what}: got {shown(got)}, expected {shown(expected)}")


def shown(value):
    text = repr(value)
    return text if len(text) < 200 else text[:200] + "..."


class Failed(Exception):
    pass


def run(conn, sql, values=(), oids=None, formats=None, result=pq.Format.TEXT):
    """Rows as bytes."""
    got = conn.pgconn.exec_params(
        sql.encode(), list(values), list(oids) if oids else None, list(formats) if formats else None, result
    )
    if got.status not in (pq.ExecStatus.TUPLES_OK, pq.ExecStatus.COMMAND_OK):
        code = got.error_field(pq.DiagnosticField.SQLSTATE) or b"?"
        raise Failed(f"{code.decode()} {got.get_error_message()}")
    return [[got.get_value(r, c) for c in range(got.nfields)] for r in range(got.ntuples)]


def attempt(what, *args, **kwargs):
    try:
        return run(*args, **kwargs)
    except Failed as e:
        check(what, str(e), "no error")
        return None


def scalar_types(conn):
    """Without a table: a parameter cast to the type, in all four combinations of formats."""
    for name, (oid, values) in CASES.items():
        for value in values:
            given, expected = value if isinstance(value, tuple) else (value, value)
            what = f"{name} {shown(given)}"
            sql = f"SELECT $1::{name}"
            for oids in ((oid,), (0,)):
                rows = attempt(f"{what} as text, declared {oids[0]}", conn, sql, [given.encode()], oids)
                if rows:
                    check(f"{what} as text, declared {oids[0]}", rows[0][0].decode(), expected)
            rows = attempt(f"{what} to binary", conn, sql, [given.encode()], (oid,), result=pq.Format.BINARY)
            if not rows:
                continue
            binary = rows[0][0]
            rows = attempt(f"{what} from binary", conn, sql, [binary], (oid,), (pq.Format.BINARY,))
            if rows:
                check(f"{what} from binary", rows[0][0].decode(), expected)
            rows = attempt(f"{what} binary both ways", conn, sql, [binary], (oid,), (pq.Format.BINARY,), pq.Format.BINARY)
            if rows:
                check(f"{what} binary both ways", rows[0][0], binary)
        for result in (pq.Format.TEXT, pq.Format.BINARY):
            for sent in (pq.Format.TEXT, pq.Format.BINARY):
                rows = attempt(f"{name} NULL", conn, f"SELECT $1::{name}", [None], (oid,), (sent,), result)
                check(f"{name} NULL {sent} {result}", rows, [[None]])


def stored_types(conn):
    """Through a table with one column of each type: what went in comes out, by key and by scan."""
    run(conn, "DROP TABLE IF EXISTS every_type")
    columns = ", ".join(f"c{i} {name}" for i, name in enumerate(CASES))
    run(conn, f"CREATE TABLE every_type (id integer PRIMARY KEY, {columns})")
    oids = [23] + [oid for oid, _ in CASES.values()]
    marks = ", ".join(f"${i + 1}" for i in range(len(oids)))
    insert = f"INSERT INTO every_type VALUES ({marks})"
    longest = max(len(values) for _, values in CASES.values())
    expected = []
    for row in range(longest + 1):
        given = [str(row)]
        output = [str(row).encode()]
        for _, values in CASES.values():
            # One row more than values: it is all NULL.
            value = values[row % len(values)] if row < longest else None
            text_in, text_out = value if isinstance(value, tuple) else (value, value)
            given.append(text_in)
            output.append(None if text_out is None else text_out.encode())
        attempt(f"insert of row {row}", conn, insert, [None if v is None else v.encode() for v in given], oids)
        expected.append(output)
    by_scan = attempt("scan in text", conn, "SELECT * FROM every_type ORDER BY id") or []
    check("rows in text", len(by_scan), len(expected))
    for got, wanted in zip(by_scan, expected):
        for i, name in enumerate(["integer", *CASES]):
            check(f"stored {name}, row {got[0].decode()}", got[i], wanted[i])
    # The same rows by their binary values.
    binary = attempt("scan in binary", conn, "SELECT * FROM every_type ORDER BY id", result=pq.Format.BINARY) or []
    run(conn, "DROP TABLE IF EXISTS every_type_again")
    run(conn, f"CREATE TABLE every_type_again (id integer PRIMARY KEY, {columns})")
    for row in binary:
        sql = insert.replace("every_type", "every_type_again")
        attempt("insert in binary", conn, sql, row, oids, [pq.Format.BINARY] * len(oids))
    for row, wanted in enumerate(expected):
        got = attempt("read by key", conn, f"SELECT * FROM every_type_again WHERE id = $1", [str(row).encode()], (23,))
        check(f"stored in binary, row {row}, by key", got, [wanted])
    compared = attempt(
        "comparison in SQL",
        conn,
        "SELECT count(*) FROM every_type a JOIN every_type_again b ON a.id = b.id WHERE "
        + " AND ".join(f"a.c{i} IS NOT DISTINCT FROM b.c{i}" for i in range(len(CASES))),
    )
    check("rows equal in SQL", compared, [[str(len(expected)).encode()]])


def refused(conn, is_postgresql):
    for name, values in REFUSED.items():
        for value in values:
            try:
                run(conn, f"SELECT $1::{name}", [value.encode()], (CASES[name][0],))
                got = "accepted"
            except Failed as e:
                got = str(e)[:5]
            if not is_postgresql:
                check(f"{name} {value}", got in ("22008", "22003", "0A000"), True)


def adapters(conn):
    """What applications do: Python values in, Python values out."""
    values = {
        "boolean": [True, False],
        "smallint": [-32768, 32767],
        "integer": [-(2**31), 2**31 - 1],
        "bigint": [-(2**63), 2**63 - 1],
        "real": [1.5, math.inf],
        "double precision": [0.1, -math.inf, 1.7976931348623157e308],
        "numeric(38,10)": [decimal.Decimal("123.4567890123"), decimal.Decimal("-0.0000000001")],
        "text": ["", "grüezi 🦀", "x" * 70_000],
        "varchar(5)": ["abc"],
        "char(5)": ["abcde"],
        "date": [datetime.date.min, datetime.date.max, datetime.date(2024, 2, 29)],
        "time": [datetime.time.min, datetime.time.max],
        "timestamp": [datetime.datetime.min, datetime.datetime.max],
        "timestamptz": [datetime.datetime(2024, 7, 1, 12, tzinfo=datetime.timezone(datetime.timedelta(hours=2)))],
        "interval": [datetime.timedelta(days=-3, seconds=5, microseconds=7), datetime.timedelta(0)],
        "bytea": [b"", bytes(range(256))],
        "uuid": [uuid.UUID(int=2**128 - 1)],
    }
    for binary in (False, True):
        mark = "%b" if binary else "%t"
        with conn.cursor(binary=binary) as cursor:
            for name, list_of in values.items():
                for value in list_of + [None]:
                    what = f"{name} {shown(value)} by adapter, binary={binary}"
                    try:
                        got = cursor.execute(f"SELECT {mark}::{name}", (value,)).fetchone()[0]
                        check(what, got, value)
                    except psycopg.Error as e:
                        check(what, f"{e.sqlstate} {e}", "no error")
    # A statement used often is prepared by psycopg (after 5 uses), then described no more.
    for prepare in (True, False):
        for i in range(8):
            got = conn.execute("SELECT %s::int + 1, %s::text", (i, None), prepare=prepare).fetchone()
            check("prepared", got, (i + 1, None))
    with conn.pipeline():
        cursors = [conn.execute("SELECT %s::int", (i,)) for i in range(20)]
    check("pipeline", [c.fetchone()[0] for c in cursors], list(range(20)))


def cancel(conn):
    """A long query ends within seconds of `cancel()` with 57014, and the connection goes on."""
    run(conn, "DROP TABLE IF EXISTS many")
    run(conn, "CREATE TABLE many (k integer PRIMARY KEY)")
    values = ",".join(f"({i})" for i in range(4000))
    run(conn, f"INSERT INTO many VALUES {values}")
    long = "SELECT count(*) FROM many a, many b, many c WHERE a.k + b.k + c.k = -1"
    for _ in range(3):
        timer = threading.Timer(0.5, conn.cancel)
        timer.start()
        begin = time.monotonic()
        try:
            conn.execute(long)
            got = "finished"
        except psycopg.errors.QueryCanceled as e:
            got = e.sqlstate
        timer.join()
        took = time.monotonic() - begin
        check("cancelled", got, "57014")
        check("cancelled within 5 s", took < 5, True)
        check("the connection works", conn.execute("SELECT 1 + 1").fetchone()[0], 2)


def main():
    with psycopg.connect(sys.argv[1], autocommit=True) as conn:
        version = conn.execute("SELECT version()").fetchone()[0]
        conn.execute("SET timezone = 'UTC'")
        scalar_types(conn)
        stored_types(conn)
        refused(conn, "Tessera" not in version)
        adapters(conn)
        cancel(conn)
        print(f"{version}: {checks} checks of {len(CASES)} types, {len(failures)} failures")
        for failure in failures:
            print(f"  {failure}")
        return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
