BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('0006');
CREATE TABLE answers (
	id BLOB NOT NULL, 
	digest BLOB NOT NULL, 
	request_id VARCHAR(64) NOT NULL, 
	owner VARCHAR(32) NOT NULL, 
	lease_ends DOUBLE NOT NULL, 
	waited_for DOUBLE NOT NULL, 
	status INTEGER, 
	headers JSON, 
	error_code VARCHAR(64), 
	object VARCHAR(100), 
	nbytes BIGINT NOT NULL, 
	expires DOUBLE, 
	body BLOB, 
	CONSTRAINT pk_answers PRIMARY KEY (id)
);
INSERT INTO "answers" VALUES(X'0000000000000000000000000000000000000000000000000000000000000000',X'0000000000000000000000000000000000000000000000000000000000000000','x','x',1.5,1.5,1,'["x"]','x','x',1,1.5,X'0000000000000000000000000000000000000000000000000000000000000000');
CREATE TABLE batches (
	id VARCHAR(64) NOT NULL, 
	tenant VARCHAR(200) NOT NULL, 
	endpoint VARCHAR(64) NOT NULL, 
	input_file_id VARCHAR(64) NOT NULL, 
	status VARCHAR(16) NOT NULL, 
	request BLOB NOT NULL, 
	given BLOB NOT NULL, 
	output_seconds INTEGER, 
	created_at DOUBLE NOT NULL, 
	expires_at DOUBLE NOT NULL, 
	in_progress_at DOUBLE, 
	finalizing_at DOUBLE, 
	cancelling_at DOUBLE, 
	ended_at DOUBLE, 
	total INTEGER NOT NULL, 
	completed INTEGER NOT NULL, 
	failed INTEGER NOT NULL, 
	errors BLOB, 
	output_file_id VARCHAR(64), 
	error_file_id VARCHAR(64), 
	attempt INTEGER NOT NULL, 
	owner VARCHAR(64), 
	lease_until DOUBLE, 
	CONSTRAINT pk_batches PRIMARY KEY (id)
);
INSERT INTO "batches" VALUES('x','x','x','x','x',X'0000000000000000000000000000000000000000000000000000000000000000',X'0000000000000000000000000000000000000000000000000000000000000000',1,1.5,1.5,1.5,1.5,1.5,1.5,1,1,1,X'0000000000000000000000000000000000000000000000000000000000000000','x','x',1,'x',1.5);
CREATE TABLE deliveries (
	id VARCHAR(64) NOT NULL, 
	subject VARCHAR(64) NOT NULL, 
	url TEXT NOT NULL, 
	payload TEXT NOT NULL, 
	tries INTEGER NOT NULL, 
	next_at DOUBLE NOT NULL, host VARCHAR(255) DEFAULT '' NOT NULL, 
	CONSTRAINT pk_deliveries PRIMARY KEY (id)
);
INSERT INTO "deliveries" VALUES('x','x','x','x',1,1.5,'x');
CREATE TABLE jobs (
	id VARCHAR(64) NOT NULL, 
	tenant VARCHAR(200) NOT NULL, 
	endpoint VARCHAR(64) NOT NULL, 
	model VARCHAR(256) NOT NULL, 
	priority INTEGER NOT NULL, 
	request BLOB NOT NULL, 
	pictures INTEGER NOT NULL, 
	inputs TEXT NOT NULL, 
	outputs TEXT NOT NULL, 
	nbytes BIGINT NOT NULL, 
	status VARCHAR(16) NOT NULL, 
	step INTEGER NOT NULL, 
	steps INTEGER NOT NULL, 
	created_at DOUBLE NOT NULL, 
	in_progress_at DOUBLE, 
	ended_at DOUBLE, 
	deadline_at DOUBLE NOT NULL, 
	predicted_at DOUBLE, 
	expires_at DOUBLE, 
	token VARCHAR(64), 
	answer BLOB, 
	error BLOB, 
	webhook_url TEXT, 
	attempt INTEGER NOT NULL, 
	owner VARCHAR(64), 
	lease_until DOUBLE, 
	not_before DOUBLE NOT NULL, 
	batch_id VARCHAR(64), 
	line INTEGER, 
	custom_id TEXT, 
	begins BIGINT, 
	length INTEGER, 
	CONSTRAINT pk_jobs PRIMARY KEY (id)
);
INSERT INTO "jobs" VALUES('x','x','x','x',1,X'0000000000000000000000000000000000000000000000000000000000000000',1,'x','x',1,'x',1,1,1.5,1.5,1.5,1.5,1.5,1.5,'x',X'0000000000000000000000000000000000000000000000000000000000000000',X'0000000000000000000000000000000000000000000000000000000000000000','x',1,'x',1.5,1.5,'x',1,'x',1,1);
CREATE TABLE key_changes (
	one INTEGER NOT NULL, 
	count BIGINT NOT NULL, 
	CONSTRAINT pk_key_changes PRIMARY KEY (one)
);
INSERT INTO "key_changes" VALUES(1,0);
CREATE TABLE keys (
	id VARCHAR(32) NOT NULL, 
	tenant VARCHAR(200) NOT NULL, 
	name VARCHAR(200) NOT NULL, 
	digest BLOB NOT NULL, 
	scopes JSON NOT NULL, 
	models JSON NOT NULL, 
	requests_per_minute INTEGER, 
	images_per_minute INTEGER, 
	concurrent_requests INTEGER, 
	device_seconds_per_month DOUBLE, 
	created DOUBLE NOT NULL, 
	expires DOUBLE, 
	last_used DOUBLE, 
	revoked DOUBLE, 
	CONSTRAINT pk_keys PRIMARY KEY (id), 
	CONSTRAINT uq_keys_digest UNIQUE (digest)
);
INSERT INTO "keys" VALUES('x','x','x',X'0000000000000000000000000000000000000000000000000000000000000000','["x"]','["x"]',1,1,1,1.5,1.5,1.5,1.5,1.5);
CREATE TABLE spending (
	"key" VARCHAR NOT NULL, 
	month INTEGER NOT NULL, 
	device_seconds DOUBLE NOT NULL, 
	CONSTRAINT pk_spending PRIMARY KEY ("key", month)
);
INSERT INTO "spending" VALUES('x',1,1.5);
CREATE TABLE usage (
	id VARCHAR NOT NULL, 
	created DOUBLE NOT NULL, 
	day INTEGER NOT NULL, 
	tenant VARCHAR NOT NULL, 
	"key" VARCHAR NOT NULL, 
	model VARCHAR NOT NULL, 
	endpoint VARCHAR NOT NULL, 
	status INTEGER NOT NULL, 
	code VARCHAR NOT NULL, 
	images INTEGER NOT NULL, 
	encoder_seconds DOUBLE NOT NULL, 
	dit_seconds DOUBLE NOT NULL, 
	decoder_seconds DOUBLE NOT NULL, 
	CONSTRAINT pk_usage PRIMARY KEY (id)
);
INSERT INTO "usage" VALUES('x',1.5,1,'x','x','x','x',1,'x',1,1.5,1.5,1.5);
CREATE INDEX ix_keys_tenant ON keys (tenant);
CREATE INDEX ix_usage_day ON usage (day, tenant);
CREATE INDEX ix_usage_tenant ON usage (tenant, day);
CREATE INDEX ix_answers_expires_nbytes ON answers (expires, nbytes);
CREATE INDEX ix_jobs_tenant_created_at ON jobs (tenant, created_at);
CREATE INDEX ix_jobs_batch_id_ended_at_line ON jobs (batch_id, ended_at, line);
CREATE INDEX ix_jobs_ended_at_deadline_at ON jobs (ended_at, deadline_at);
CREATE INDEX ix_jobs_expires_at ON jobs (expires_at);
CREATE INDEX ix_jobs_owner ON jobs (owner);
CREATE INDEX ix_jobs_token ON jobs (token);
CREATE INDEX ix_deliveries_next_at ON deliveries (next_at);
CREATE INDEX ix_deliveries_subject ON deliveries (subject);
CREATE INDEX ix_batches_tenant_created_at ON batches (tenant, created_at);
CREATE INDEX ix_batches_ended_at ON batches (ended_at);
CREATE INDEX ix_deliveries_host_next_at ON deliveries (host, next_at);
COMMIT;
