#!/bin/bash
# Builds the two proxies and measures them in turns: ./run.sh [ROUNDS [SECONDS]]. Prints one line for each kind of load: the medians of
# requests per second, of the 99th percentile of the answers' time and of the proxy's CPU per request, and their ratios.
set -euo pipefail
rounds=${1:-3} seconds=${2:-5}
cd "$(dirname "$0")"
cargo build --quiet --release
dir=$(mktemp -d)
client=bakeoff-client-$$ gateway=bakeoff-gateway-$$ server=bakeoff-server-$$
pids=()
clean() {
    [ ${#pids[@]} = 0 ] || kill "${pids[@]}" 2>/dev/null || true
    for namespace in $client $gateway $server; do ip netns del $namespace 2>/dev/null || true; done
    rm -rf "$dir"
}
trap clean EXIT

for namespace in $client $gateway $server; do
    ip netns add $namespace
    ip -n $namespace link set lo up
done
ip link add to-gateway netns $client type veth peer name to-client netns $gateway
ip link add to-server netns $gateway type veth peer name to-gateway netns $server
ip -n $client address add 10.0.1.2/24 dev to-gateway
ip -n $gateway address add 10.0.1.1/24 dev to-client
ip -n $gateway address add 10.0.2.2/24 dev to-server
ip -n $server address add 10.0.2.1/24 dev to-gateway
ip -n $client link set to-gateway up
ip -n $gateway link set to-client up
ip -n $gateway link set to-server up
ip -n $server link set to-gateway up

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=bench.example \
    -keyout "$dir/key.pem" -out "$dir/chain.pem" 2>/dev/null
for size in 200 16384; do head -c $size /dev/zero | tr '\0' x >"$dir/$size"; done
# The server of the benchmarks.
sed -e "s|{{dir}}|$dir|g; s|{{cores}}|$(nproc)|; s|{{http}}|8080|; s|{{http_tls}}|8443|" \
    -e "s|{{certificate}}|$dir/chain.pem|; s|{{key}}|$dir/key.pem|; /http2 on/d" ../peers/http-server.conf >"$dir/nginx.conf"
chmod 755 "$dir"
ip netns exec $server nginx -e stderr -p "$dir" -c "$dir/nginx.conf" &
pids+=($!)
declare -A port=([hyper]=7001 [pingora]=7002) pid
for proxy in hyper pingora; do
    ip netns exec $gateway ./target/release/with-$proxy 10.0.1.1:${port[$proxy]} 10.0.2.1:8080 "$dir/chain.pem" "$dir/key.pem" \
        >"$dir/$proxy.log" 2>&1 &
    pid[$proxy]=$!
    pids+=($!)
done
sleep 2

# Clock ticks that a process has used.
ticks() { awk '{ sub(/.*\) /, ""); print $12 + $13 }' /proc/"$1"/stat; }

# load PROXY PROTOCOL STREAMS SIZE REQUESTS: requests per second, 99th percentile in ms, CPU in microseconds per request.
load() {
    local args=(-n "$5" -c 50 -m "$3" --log-file "$dir/log" --tls13-ciphers=TLS_AES_128_GCM_SHA256 --groups=X25519)
    if [ "$2" = h1 ]; then args+=(--h1); fi
    rm -f "$dir/log"
    local before after said
    before=$(ticks ${pid[$1]})
    said=$(ip netns exec $client h2load "${args[@]}" "https://10.0.1.1:${port[$1]}/r9/$4")
    after=$(ticks ${pid[$1]})
    grep -q "status codes: $5 2xx" <<<"$said" || { echo "$1 $2 $3 $4: not all were answered: $said" >&2; exit 1; }
    cut -f3 "$dir/log" | sort -n >"$dir/times"
    awk -v rate="$(sed -n 's/^finished in .*, \([0-9.]*\) req\/s.*/\1/p' <<<"$said")" -v count="$5" \
        -v cpu=$((after - before)) -v hertz="$(getconf CLK_TCK)" \
        'NR == int(count * 0.99) { print rate, $1 / 1000, cpu / hertz * 1e6 / count }' "$dir/times"
}

median() { sort -n | awk '{ all[NR] = $1 } END { print all[int((NR + 1) / 2)] }'; }

echo "load average: $(cut -d' ' -f1-3 /proc/loadavg)"
printf '%-12s %22s %26s %32s\n' '' 'requests/s (ratio)' 'p99, ms (ratio)' 'CPU, us per request (ratio)'
for kind in "h1 1 200" "h1 1 16384" "h2 2 200" "h2 2 16384" "h2 8 200" "h2 8 16384"; do
    read -r protocol streams size <<<"$kind"
    for proxy in hyper pingora; do
        # Warms up, and says how many requests fill the time.
        rate=$(load $proxy $protocol $streams $size 4000 | cut -d' ' -f1)
        declare count_$proxy="$(awk -v rate="$rate" -v seconds="$seconds" 'BEGIN { print int(rate * seconds) }')"
        : >"$dir/$proxy.found"
    done
    for round in $(seq "$rounds"); do
        order="hyper pingora"
        [ $((round % 2)) = 1 ] || order="pingora hyper"
        for proxy in $order; do
            count=count_$proxy
            load $proxy $protocol $streams $size "${!count}" >>"$dir/$proxy.found"
        done
    done
    line=$(printf '%-12s' "$protocol $streams $size")
    for column in 1 2 3; do
        ours=$(cut -d' ' -f$column "$dir/hyper.found" | median)
        theirs=$(cut -d' ' -f$column "$dir/pingora.found" | median)
        line+=$(awk -v ours="$ours" -v theirs="$theirs" -v column=$column \
            'BEGIN { printf "  %10.2f / %10.2f (%.2f)", ours, theirs, column == 1 ? ours / theirs : theirs / ours }')
    done
    echo "$line"
done
echo "hyper / pingora; ratios above 1: hyper is ahead. load average: $(cut -d' ' -f1-3 /proc/loadavg)"
