-- wrk sends requests drawn at random from a file of them, all of one length.
local requests, length, count

function init()
	local file = assert(io.open(os.getenv("REQUESTS"), "rb"))
	requests = file:read("*a")
	file:close()
	length = tonumber(os.getenv("REQUEST_LENGTH"))
	count = #requests / length
	math.randomseed(os.time())
end

function request()
	local first = math.random(0, count - 1) * length
	return requests:sub(first + 1, first + length)
end

function done(summary)
	local e = summary.errors
	local failed = e.connect + e.read + e.write + e.status + e.timeout
	if failed > 0 then
		print(failed .. " REQUESTS FAILED")
	end
end
