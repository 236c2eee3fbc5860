-- The queue of jobs. Nobody but our own functions sends to it or reads it, unless the app exposes it itself.
select from pgmq.create('stats_update')
where not exists (select from pgmq.meta where queue_name = 'stats_update');

alter table pgmq.q_stats_update enable row level security;
alter table pgmq.a_stats_update enable row level security;
