"""Flight SQL through the ADBC driver, against a router and shard nodes in processes of their own.

    python adbc_flight.py grpc://host:port postgres://user@host:port/database PID_OF_ROUTER PID_OF_NODE...

    query, parameters, errors, metadata         every driver call that Python programs make
    ingest                                      1 M rows in one transaction, and one that fails
    execute_partitions, read_partition          a partition names its node, and is read from it while the router stands still
    cancel                                      one second later no process of the cluster computes anything
    fetch                                       4 columns over Flight, and as text over the PostgreSQL protocol, in turns

INGEST_ROWS (1,000,000) and FETCH_ROWS (10,000,000) make it smaller; RATIO (4) is how many times as fast Flight must be, 0 for a
build that nobody measures.
"""

import os
import signal
import subprocess
import sys
import threading
import time

import adbc_driver_flightsql.dbapi as flight
import adbc_driver_manager
import psycopg
import pyarrow
import pyarrow.flight

INGEST_ROWS = int(os.environ.get("INGEST_ROWS", "1000000"))
FETCH_ROWS = int(os.environ.get("FETCH_ROWS", "10000000"))
RATIO = float(os.environ.get("RATIO", "4"))
BATCH_ROWS = 65_536
# Heartbeats and keepalives of four processes; a query takes whole cores.
IDLE_CPU_MAX = 0.5

failures = []


def check(what, ok, more=""):
    print(("ok: " if ok else "FAILED: ") + what + (f" ({more})" if more else ""), flush=True)
    if not ok:
        failures.append(what)


def connect(uri, user="ann"):
    options = {adbc_driver_manager.DatabaseOptions.USERNAME.value: user, adbc_driver_manager.DatabaseOptions.PASSWORD.value: "x"}
    return flight.connect(uri, db_kwargs=options, autocommit=True)


def batches(rows, first=0):
    """Rows of four columns: an integer, a smaller one, a float and a text."""
    schema = pyarrow.schema([("k", pyarrow.int64()), ("n", pyarrow.int32()), ("x", pyarrow.float64()), ("s", pyarrow.string())])

    def make():
        for begin in range(first, first + rows, BATCH_ROWS):
            keys = range(begin, min(begin + BATCH_ROWS, first + rows))
            yield pyarrow.record_batch(
                [
                    pyarrow.array(keys, pyarrow.int64()),
                    pyarrow.array([k % 1000 for k in keys], pyarrow.int32()),
                    pyarrow.array([k / 8 for k in keys], pyarrow.float64()),
                    pyarrow.array([f"name {k % 5000}" for k in keys]),
                ],
                schema=schema,
            )

    return pyarrow.RecordBatchReader.from_batches(schema, make())


def statements(connection):
    with connection.cursor() as cursor:
        cursor.execute("CREATE TABLE s (k bigint PRIMARY KEY, name text, price numeric(10,2), day date) SHARD BY HASH(k) SHARDS 6")
        cursor.execute("INSERT INTO s VALUES (1, 'one', 1.25, '2024-02-29'), (2, 'two', NULL, NULL), (3, 'three', 3.75, '2025-01-01')")
        check("an INSERT tells its rows", cursor.rowcount == 3, str(cursor.rowcount))
        cursor.execute("SELECT k, name, price FROM s ORDER BY k")
        rows = [(k, name, None if price is None else str(price)) for k, name, price in cursor.fetchall()]
        check("query", rows == [(1, "one", "1.25"), (2, "two", None), (3, "three", "3.75")], str(rows))
        cursor.execute("SELECT name FROM s WHERE k = $1 OR name = $2", (1, "three"))
        names = sorted(name for (name,) in cursor.fetchall())
        check("parameters", names == ["one", "three"], str(names))
        cursor.executemany("INSERT INTO s (k, name) VALUES ($1, $2)", [(k, f"many {k}") for k in range(10, 1010)])
        cursor.execute("SELECT count(*) FROM s")
        check("executemany", cursor.fetchone() == (1003,))
        cursor.adbc_prepare("SELECT k, day FROM s WHERE k = $1")
        check("execute_schema", cursor.adbc_execute_schema("SELECT k, day FROM s").names == ["k", "day"])
        for sql, state in [("SELECT * FROM nowhere", "42P01"), ("SELEC 1", "42601"), ("INSERT INTO s VALUES (1)", "23505"), ("BEGIN", "0A000")]:
            try:
                cursor.execute(sql)
                check(f"{sql} is refused", False)
            except adbc_driver_manager.Error as error:
                check(f"{sql} is refused", f"[{state}]" in str(error), str(error).splitlines()[0])
    check("the connection goes on", scalar(connection, "SELECT 6 * 7") == 42)


def scalar(connection, sql):
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()[0]


def metadata(connection):
    objects = connection.adbc_get_objects(depth="columns", db_schema_filter="public", table_name_filter="s").read_all().to_pylist()
    tables = [t for catalog in objects for schema in catalog["catalog_db_schemas"] for t in schema["db_schema_tables"]]
    columns = [c["column_name"] for t in tables for c in t["table_columns"]]
    check("get_objects", columns == ["k", "name", "price", "day"], str(columns))
    check("get_table_schema", connection.adbc_get_table_schema("s").names == ["k", "name", "price", "day"])
    check("get_table_types", connection.adbc_get_table_types() == ["TABLE", "VIEW"])
    check("get_info", connection.adbc_get_info()["vendor_name"] == "Tessera")
    check("current_catalog", connection.adbc_current_catalog == "tessera")
    check("current_db_schema", connection.adbc_current_db_schema == "public")


def ingest(connection):
    with connection.cursor() as cursor:
        start = time.monotonic()
        rows = cursor.adbc_ingest("big", batches(INGEST_ROWS), mode="create")
        took = time.monotonic() - start
        check(f"ingest of {INGEST_ROWS} rows", rows == INGEST_ROWS, f"{took:.2f} s, {INGEST_ROWS / took:,.0f} rows/s")
        cursor.execute("SELECT count(*), min(k), max(k), count(DISTINCT s) FROM big")
        found = cursor.fetchone()
        check("they are there", found == (INGEST_ROWS, 0, INGEST_ROWS - 1, min(5000, INGEST_ROWS)), str(found))
        try:
            cursor.adbc_ingest("s", pyarrow.table({"k": [5000, 5001, 1], "name": ["a", "b", "c"]}), mode="append")
            check("an ingest with a duplicate is refused", False)
        except adbc_driver_manager.Error as error:
            check("an ingest with a duplicate is refused", "[23505]" in str(error))
    check("nothing of it is there", scalar(connection, "SELECT count(*) FROM s WHERE k >= 5000") == 0)


def partitions(connection, uri, router):
    nodes = {address for (address,) in fetch_all(connection, "SELECT address FROM tessera.nodes")}
    with connection.cursor() as cursor:
        parts, schema = cursor.adbc_execute_partitions("SELECT k, s FROM big")
    owners = []
    for part in parts:
        endpoints = pyarrow.flight.FlightInfo.deserialize(part).endpoints
        owners.append(endpoints[0].locations[0].uri.decode().removeprefix("grpc+tcp://"))
    check("one partition per node", sorted(owners) == sorted(nodes), str(owners))
    # Another client, which reads while the router cannot answer anybody.
    with connect(uri) as other:
        check("another connection works", scalar(other, "SELECT 1") == 1)
        late = threading.Timer(20, lambda: os.kill(router, signal.SIGCONT))
        late.start()
        os.kill(router, signal.SIGSTOP)
        try:
            start, rows, schemas = time.monotonic(), 0, []
            cursor = other.cursor()
            for part in parts:
                cursor.adbc_read_partition(part)
                table = cursor.fetch_arrow_table()
                rows += table.num_rows
                schemas.append(table.schema)
            took = time.monotonic() - start
        finally:
            os.kill(router, signal.SIGCONT)
            late.cancel()
        cursor.close()
    check("read_partition, with the router stopped", rows == INGEST_ROWS and took < 20, f"{rows} rows in {took:.2f} s")
    check("equal schemas from every node", all(s == schema for s in schemas), str(schema.names))


def fetch_all(connection, sql):
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchall()


def cpu(pids):
    """Seconds of processor time that the processes have used."""
    ticks = 0
    for pid in pids:
        with open(f"/proc/{pid}/stat") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def idle(what, connection, pids):
    time.sleep(1)
    before = cpu(pids)
    time.sleep(1)
    used = cpu(pids) - before
    check(f"all processes idle 1 s after {what}", used < IDLE_CPU_MAX, f"{used:.2f} s of processor time in the next second")
    until = time.monotonic() + 15
    while (tasks := scalar(connection, "SELECT sum(query_tasks) FROM tessera.nodes")) and time.monotonic() < until:
        time.sleep(0.2)
    check(f"no query task left after {what}", tasks == 0, str(tasks))


def cancel(connection, uri, pids):
    with connect(uri) as other:
        cursor = other.cursor()
        cursor.execute("SELECT a.k, b.s FROM big a, big b")
        reader = cursor.fetch_record_batch()
        reader.read_next_batch()
        cursor.adbc_cancel()
        reader.close()
        idle("a cancelled stream", connection, pids)
    with connect(uri) as other:
        cursor = other.cursor()
        failed = []

        def run():
            try:
                cursor.execute("SELECT count(*) FROM big a, big b WHERE a.k + b.k = -1")
                cursor.fetchall()
            except adbc_driver_manager.Error as error:
                failed.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        time.sleep(2)
        before = cpu(pids)
        time.sleep(0.5)
        check("the statement computes", cpu(pids) - before > 0.1)
        cursor.adbc_cancel()
        thread.join(10)
        check("a running statement is cancelled", bool(failed) and not thread.is_alive(), str(failed)[:120])
        idle("a cancelled statement", connection, pids)


def speed(connection, url):
    with connection.cursor() as cursor:
        start = time.monotonic()
        cursor.adbc_ingest("fetched", batches(FETCH_ROWS), mode="create")
        print(f"loaded {FETCH_ROWS} rows in {time.monotonic() - start:.1f} s", flush=True)
    sql = "SELECT k, n, x, s FROM fetched"
    over_flight, over_text = [], []
    for _ in range(3):
        start, rows = time.monotonic(), 0
        with connection.cursor() as cursor:
            cursor.execute(sql)
            for batch in cursor.fetch_record_batch():
                rows += batch.num_rows
        over_flight.append(time.monotonic() - start)
        assert rows == FETCH_ROWS, rows
        start = time.monotonic()
        subprocess.run(["psql", "-X", "-A", "-t", "-q", "-o", "/dev/null", "-c", sql, url], check=True)
        over_text.append(time.monotonic() - start)
    fast, slow = sorted(over_flight)[1], sorted(over_text)[1]
    spread = lambda times: ", ".join(f"{t:.2f}" for t in times)
    print(f"{FETCH_ROWS} rows x 4 columns: ADBC {fast:.2f} s (of {spread(over_flight)}), psql {slow:.2f} s (of {spread(over_text)})")
    check(f"Flight is at least {RATIO:g} times as fast", slow / fast >= RATIO, f"{slow / fast:.1f} times")


def main():
    uri, url, router, *nodes = sys.argv[1:]
    router, pids = int(router), [int(pid) for pid in [router, *nodes]]
    connection = connect(uri)
    statements(connection)
    metadata(connection)
    ingest(connection)
    partitions(connection, uri, router)
    cancel(connection, uri, pids)
    with psycopg.connect(url, autocommit=True) as pg:
        same = pg.execute("SELECT sum(k), count(DISTINCT s) FROM big").fetchone()
    with connection.cursor() as cursor:
        cursor.execute("SELECT sum(k), count(DISTINCT s) FROM big")
        check("both ports give the same", tuple(int(v) for v in cursor.fetchone()) == tuple(int(v) for v in same))
    speed(connection, url)
    connection.close()
    for what in failures:
        print("FAILED:", what)
    sys.exit(1 if failures else 0)


main()
