INSERT INTO documents AS d VALUES (:'lock', :'body', :'token')
ON CONFLICT (lock) DO UPDATE
    SET body = excluded.body, token = excluded.token
    WHERE d.token <= excluded.token
RETURNING 'written';
