-- A journal of version 1, as its last process left it when it was killed. Never changed.
PRAGMA application_id = 1179339313;
PRAGMA user_version = 1;
PRAGMA journal_mode = WAL;
BEGIN TRANSACTION;
CREATE TABLE accounts (
            id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE,
            settled INTEGER NOT NULL DEFAULT 0, held INTEGER NOT NULL DEFAULT 0, pruned INTEGER NOT NULL DEFAULT 0);
INSERT INTO "accounts" VALUES(1,'',4000000,30000000,0);
CREATE TABLE facts (name TEXT PRIMARY KEY, value BLOB NOT NULL, digest BLOB NOT NULL) WITHOUT ROWID;
INSERT INTO "facts" VALUES('salt',X'479124189CD21214370E855319F585B474313D333FD139FA',X'205F8F1761F2221C');
CREATE TABLE items (
            id INTEGER PRIMARY KEY AUTOINCREMENT, account INTEGER NOT NULL, name BLOB NOT NULL CHECK (typeof(name) IN ('blob', 'null')),
            content BLOB NOT NULL CHECK (typeof(content) IN ('blob', 'null')), run INTEGER NOT NULL, seen INTEGER NOT NULL,
            UNIQUE (account, name));
INSERT INTO "items" VALUES(1,1,X'3D07C397CE963B69E63587D093179EFC3331',X'07C397CE963B69E63587D093179EFC3336A75253',1,0);
INSERT INTO "items" VALUES(2,1,X'69643A726F772032',X'1AE5F29D1D7D7CB6DA1E77518299E7E5AD8D483C',1,0);
INSERT INTO "items" VALUES(3,1,X'69643A726F772033',X'35BBE3619E61FD127E439EC2D12869CF8766F17E',1,0);
INSERT INTO "items" VALUES(4,1,X'69643A726F772034',X'A08A11E24159C3B2AE3EA12C0ECA4EFCD15A1108',1,0);
CREATE TABLE requests (
            id INTEGER PRIMARY KEY AUTOINCREMENT, account INTEGER NOT NULL, item INTEGER CHECK (typeof(item) IN ('integer', 'null')),
            key TEXT CHECK (typeof(key) IN ('text', 'null')), request_id TEXT CHECK (typeof(request_id) IN ('text', 'null')),
            state TEXT NOT NULL CHECK (state IN ('submitting', 'refused', 'uncertain', 'submitted', 'completed', 'downloaded', 'failed', 'cancelled')), run INTEGER NOT NULL,
            reserved INTEGER CHECK (typeof(reserved) IN ('integer', 'null')), cost INTEGER CHECK (typeof(cost) IN ('integer', 'null')),
            created REAL NOT NULL, updated REAL NOT NULL, model TEXT CHECK (typeof(model) IN ('text', 'null')), error TEXT CHECK (typeof(error) IN ('text', 'null')),
            files TEXT CHECK (typeof(files) IN ('text', 'null')), answer BLOB CHECK (typeof(answer) IN ('blob', 'null')), digest INTEGER CHECK (typeof(digest) IN ('integer', 'null')),
            body BLOB CHECK (typeof(body) IN ('blob', 'null')));
INSERT INTO "requests" VALUES(1,1,1,'k0','r0','downloaded',1,10000000,4000000,1000.0,1000.0,'a/b',NULL,'[["/out/r.png", "ab", 3]]',X'7B2261223A20317D',41282824,X'7B2270726F6D7074223A202230227D');
INSERT INTO "requests" VALUES(2,1,2,'k1','r1','submitted',1,10000000,NULL,1000.0,1000.0,'a/b',NULL,NULL,NULL,NULL,X'7B2270726F6D7074223A202231227D');
INSERT INTO "requests" VALUES(3,1,3,'k2',NULL,'uncertain',1,10000000,NULL,1000.0,1000.0,'a/b','why',NULL,NULL,NULL,X'7B2270726F6D7074223A202232227D');
INSERT INTO "requests" VALUES(4,1,4,'k3',NULL,'submitting',1,10000000,NULL,1000.0,1000.0,'a/b',NULL,NULL,NULL,NULL,X'7B2270726F6D7074223A202233227D');
CREATE TABLE runs (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, began REAL NOT NULL);
INSERT INTO "runs" VALUES(1,'a0d3b08fd85f54e4',1000.0);
CREATE UNIQUE INDEX orders_by_key ON requests (account, key) WHERE key IS NOT NULL;
CREATE INDEX orders_by_request ON requests (account, request_id) WHERE request_id IS NOT NULL;
CREATE INDEX orders_by_item ON requests (item) WHERE item IS NOT NULL;
CREATE INDEX orders_on_their_way ON requests (run) WHERE state = 'submitting';
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('runs',1);
INSERT INTO "sqlite_sequence" VALUES('items',4);
INSERT INTO "sqlite_sequence" VALUES('requests',4);
COMMIT;
