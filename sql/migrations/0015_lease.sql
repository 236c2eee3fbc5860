-- What gives a club's waiting jobs to a run is a lease, and all that is kept of a run's work is kept by its lease: one
-- Dagster run may hold several. Rows are kept. The functions of 0.1.0 go, so its processes must have been stopped.
do $$
declare
    at_work text;
begin
    select string_agg(format('process %s%s (%s)', a.pid, coalesce(' from ' || host(a.client_addr), ''),
        a.application_name), ', ') into at_work
    from pg_catalog.pg_stat_activity as a
    where a.datname = current_database() and a.pid <> pg_backend_pid()
        -- From 0.2.0 on the name has the version in it.
        and (a.application_name in ('stats-pipeline', 'stats-pipeline-web')
            or a.application_name like 'stats-pipeline run %');
    if at_work is null then
        select format('run %s beats', r.run_id) into at_work
        from stats_pipeline.run as r
        where r.ended_at is null and r.seen_at > clock_timestamp() - interval '5 seconds'
        limit 1;
    end if;
    if at_work is not null then
        raise exception 'version 0.1.0 is still at work here, %: stop it, and migrate again', at_work;
    end if;
end;
$$;

alter table stats_pipeline.run rename to lease;
alter table stats_pipeline.lease rename column leased_at to acquired_at;
alter table stats_pipeline.lease rename column lease_until to claim_until; -- not claimed by then, it expires
alter table stats_pipeline.lease rename column seen_at to renewed_at;
alter table stats_pipeline.lease rename constraint run_pkey to lease_pkey;
alter table stats_pipeline.lease rename constraint run_claimed_has_run_id to lease_claimed_has_run_id;
alter table stats_pipeline.lease rename constraint run_ended_has_outcome to lease_ended_has_outcome;
alter index stats_pipeline.run_one_open_per_tenant rename to lease_one_open_per_tenant;
alter index stats_pipeline.run_last_claimed rename to lease_last_claimed;
alter index stats_pipeline.run_ended rename to lease_ended;
drop index stats_pipeline.run_died;

alter table stats_pipeline.lease drop constraint run_run_id_key, drop constraint run_outcome_check;
create index lease_run_id on stats_pipeline.lease (run_id) where run_id is not null;
update stats_pipeline.lease set outcome = 'expired' where outcome = 'died';
-- Released: 'succeeded', 'failed', and 'empty', which had no job left to do.
alter table stats_pipeline.lease
    add constraint lease_outcome_check check (outcome in ('succeeded', 'failed', 'empty', 'expired', 'revoked'));
-- Claimed ones that expired, for a look at whether Dagster believes in their runs.
create index lease_lost on stats_pipeline.lease (ended_at)
    where outcome in ('expired', 'revoked') and claimed_at is not null;

-- Also what is left of runs that were pruned keeps a lease of its own, if only by its id.
create temporary table lease_of_run on commit drop as
select l.run_id, l.id as lease_id
from stats_pipeline.lease as l
where l.run_id is not null
union all
select w.run_id, gen_random_uuid()
from (
    select a.run_id from stats_pipeline.attempt as a
    union
    select f.run_id from stats_pipeline.function_result as f
    union
    select o.run_id from stats_pipeline.outbox as o
) as w
where not exists (select from stats_pipeline.lease as l where l.run_id = w.run_id);

alter table stats_pipeline.attempt add column lease_id uuid;
update stats_pipeline.attempt as w set lease_id = l.lease_id from pg_temp.lease_of_run as l where l.run_id = w.run_id;
set constraints all immediate; -- while checks of these rows are pending, the table cannot be altered
alter table stats_pipeline.attempt
    drop column run_id,
    alter column lease_id set not null,
    add constraint attempt_pkey primary key (job_id, lease_id);
create index attempt_lease_id on stats_pipeline.attempt (lease_id);
create index attempt_open on stats_pipeline.attempt (lease_id) where outcome is null;

alter table stats_pipeline.function_result add column lease_id uuid;
alter table stats_pipeline.function_result rename column attempts to tries;
alter table stats_pipeline.function_result
    rename constraint function_result_attempts_check to function_result_tries_check;
update stats_pipeline.function_result as w set lease_id = l.lease_id
from pg_temp.lease_of_run as l
where l.run_id = w.run_id;
alter table stats_pipeline.function_result
    drop column run_id,
    alter column lease_id set not null,
    add constraint function_result_pkey primary key (lease_id, rpc);

alter table stats_pipeline.outbox add column lease_id uuid;
update stats_pipeline.outbox as w set lease_id = l.lease_id from pg_temp.lease_of_run as l where l.run_id = w.run_id;
alter table stats_pipeline.outbox drop column run_id, alter column lease_id set not null;
create index outbox_lease_id on stats_pipeline.outbox (lease_id);

-- Repairs are tried again under their new names.
delete from stats_pipeline.set_aside where what = 'repair';

drop function if exists stats_pipeline.abandon_run(text, timestamptz, integer, text);
drop function if exists stats_pipeline.carry_over(uuid, text);
drop function if exists stats_pipeline.claim_run(text, uuid, text[], uuid, jsonb);
drop function if exists stats_pipeline.complete_function(text, text, text[], integer, integer);
drop function if exists stats_pipeline.cut_off_run(text);
drop function if exists stats_pipeline.expire_leases();
drop function if exists stats_pipeline.fail_function(text, text, text);
drop function if exists stats_pipeline.heartbeat(text, integer);
drop function if exists stats_pipeline.jobs_of_run(text);
drop function if exists stats_pipeline.lease_club(uuid, text[], integer);
drop function if exists stats_pipeline.lease_jobs(integer, integer);
drop function if exists stats_pipeline.note_failed_start(uuid, text);
drop function if exists stats_pipeline.pause_run(text, integer);
drop function if exists stats_pipeline.prune_runs(integer, integer);
drop function if exists stats_pipeline.record_delivery(text, bigint[], text[], text, integer);
drop function if exists stats_pipeline.record_function(text, text, text, integer, integer, text);
drop function if exists stats_pipeline.resumable_run(uuid);
drop function if exists stats_pipeline.run_results(text, boolean);
drop function if exists stats_pipeline.settle_run(text, boolean, integer);
drop function if exists stats_pipeline.void_lease(uuid, text);
drop function if exists stats_pipeline.withdraw_attempts(text);
