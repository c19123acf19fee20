# Sourced by the lines' scripts.

# until_nodes N: waits until N shard nodes have joined the cluster at $url.
until_nodes() {
  for _ in $(seq 300); do
    [ "$("$TESSERA" sql "$url" --csv -c 'SELECT count(*) FROM tessera.nodes' 2>/dev/null | tail -n 1)" = "$1" ] && return
    sleep 0.1
  done
  echo "$1 nodes did not join" >&2
  return 1
}

# at_most WHAT VALUE BOUND: sets failed=1 unless 0 < VALUE <= BOUND.
at_most() {
  if awk "BEGIN { exit !($2 > 0 && $2 <= $3) }"; then echo "ok: $1: $2 (at most $3)"; else echo "FAILED: $1: $2 (at most $3)"; failed=1; fi
}

# at_least WHAT VALUE BOUND: sets failed=1 unless VALUE >= BOUND.
at_least() {
  if awk "BEGIN { exit !($2 >= $3) }"; then echo "ok: $1: $2 (at least $3)"; else echo "FAILED: $1: $2 (at least $3)"; failed=1; fi
}

# value FILE EXPRESSION: of a JSON report, such as value report.json '["ratios"]["datafusion"]'.
value() { python3 -c 'import json, sys; d = json.load(open(sys.argv[1])); print(eval("d" + sys.argv[2]))' "$@"; }
