-- wrk: the same request again and again; at the end one line of JSON.
local file = assert(io.open(os.getenv("PEER_BODY"), "rb"))
wrk.method = "POST"
wrk.body = file:read("*a")
file:close()
for name, value in (os.getenv("PEER_HEADERS") or ""):gmatch("([^:\n]+): ([^\n]+)") do
   wrk.headers[name] = value
end

function done(summary, latency, requests)
   local e = summary.errors
   io.write(string.format(
      'RESULT {"seconds": %f, "n": %d, "errors": %d, "p50_ms": %f, "p99_ms": %f, "max_ms": %f}\n',
      summary.duration / 1e6, summary.requests, e.connect + e.read + e.write + e.status + e.timeout,
      latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3))
end
