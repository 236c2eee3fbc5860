-- What could not be done for one job, message, club or repair, while the others went on: refused, locked, or odd. It is
-- tried again from next_try_at on, and its row goes when that works or nobody wants it any more.
create table stats_pipeline.set_aside (
    what text not null check (what in ('job', 'message', 'club', 'start', 'enqueue', 'repair')),
    key text not null, -- the job's id, the message's, the club's key, the repair itself
    reason text not null,
    state text not null, -- the SQLSTATE; 55P03 is a lock of somebody else's
    since timestamptz not null default clock_timestamp(),
    tries integer not null default 1 check (tries > 0),
    next_try_at timestamptz not null,
    detail jsonb, -- of an enqueue: the payload
    primary key (what, key)
);
alter table stats_pipeline.set_aside enable row level security;
