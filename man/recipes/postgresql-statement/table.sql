CREATE TABLE documents (
    lock  text PRIMARY KEY,
    body  text NOT NULL,
    token bigint NOT NULL
);
