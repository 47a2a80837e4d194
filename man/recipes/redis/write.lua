local seen = redis.call('HGET', KEYS[1], 'token') or '0'
if tonumber(ARGV[1]) < tonumber(seen) then
    return redis.error_reply('LATE token ' .. ARGV[1]
        .. ' is refused: token ' .. seen .. ' has been here')
end
return redis.call('HSET', KEYS[1],
    'token', ARGV[1], 'body', ARGV[2])
