-- A lease's part of the `results` column: how many functions succeeded or failed, and which tags the app has confirmed.
create or replace function stats_pipeline.lease_results(this_lease uuid, cache_configured boolean) returns jsonb
language sql stable set search_path = pg_catalog, pg_temp as $$
select jsonb_build_object(
    'run_id', l.run_id,
    'total_functions', cardinality(l.functions),
    'successful_functions', coalesce(f.successful, 0),
    'failed_functions', coalesce(f.failed, 0),
    'functions', coalesce(f.functions, '{}'),
    'cache', jsonb_build_object(
        'status', case when not cache_configured then 'not configured' when o.pending is null then 'delivered'
            else 'pending' end,
        'delivered', coalesce(o.delivered, '[]'),
        'pending', coalesce(o.pending, '[]')
    )
)
from stats_pipeline.lease as l
cross join lateral (
    select
        count(*) filter (where fr.status = 'success') as successful,
        count(*) filter (where fr.status = 'failed') as failed,
        jsonb_object_agg(fr.rpc, jsonb_strip_nulls(jsonb_build_object(
            'status', fr.status, 'duration_ms', fr.duration_ms, 'attempts', fr.tries, 'error', fr.error))
        ) as functions
    from stats_pipeline.function_result as fr
    where fr.lease_id = l.id
) as f
cross join lateral (
    select
        jsonb_agg(due.tag order by due.tag) filter (where due.is_delivered) as delivered,
        jsonb_agg(due.tag order by due.tag) filter (where not due.is_delivered) as pending
    from (
        select ob.tag, bool_and(ob.delivered_at is not null) as is_delivered
        from stats_pipeline.outbox as ob
        where ob.lease_id = l.id
        group by ob.tag
    ) as due
) as o
where l.id = this_lease;
$$;

revoke all on function stats_pipeline.lease_results(uuid, boolean) from public, anon, authenticated;
