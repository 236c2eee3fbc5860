-- The app has taken these.
update stats_pipeline.outbox
set delivered_at = now()
where id = any(%(ids)s::bigint[]) and delivered_at is null;
