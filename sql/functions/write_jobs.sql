-- Change rows of jobs, each `change` being {"id": …} and the columns to set, and return the ids of those that were
-- changed. With `was`, the row's xmin as the caller has read it, a row that was changed since is left as it is. A row
-- that another session has locked, or whose change is rejected by a constraint or a trigger of the app's, is set aside;
-- the others are changed. After twenty rejections the rest is left to the next call; takes less than a second, whatever
-- is locked.
create or replace function stats_pipeline.write_jobs(changes jsonb[]) returns uuid[]
language plpgsql set search_path = pg_catalog, pg_temp set lock_timeout = '250ms' as $$
declare
    due constant jsonb[] := array(
        select c.change
        from unnest(changes) as c (change)
        where c.change ->> 'id' not in (select stats_pipeline.aside('job'))
    );
    free uuid[];
    tried jsonb[];
    changed uuid[] := '{}';
    refusals integer := 0;
    one jsonb;
begin
    if due = '{}' then
        return '{}';
    end if;

    free := array(
        select j.id
        from unnest(due) as c (change)
        join public.background_job_status as j on j.id = (c.change ->> 'id')::uuid
        where j.xmin::text = coalesce(c.change ->> 'was', j.xmin::text)
        for update of j skip locked
    );
    if cardinality(free) < cardinality(due) then
        perform stats_pipeline.put_aside_locked(array(
            select j.id
            from unnest(due) as c (change)
            join public.background_job_status as j on j.id = (c.change ->> 'id')::uuid
            where not j.id = any(free) and j.xmin::text = coalesce(c.change ->> 'was', j.xmin::text)
        ));
    end if;

    tried := array(select c.change from unnest(due) as c (change) where (c.change ->> 'id')::uuid = any(free));
    begin
        changed := stats_pipeline.write_rows(tried);
        if cardinality(changed) < cardinality(tried) then
            raise exception 'A trigger of the app''s has undone the change';
        end if;
    exception
        when others then
            changed := '{}';
            perform set_config('lock_timeout', '20ms', true); -- until the end of this call; up to twenty rows may wait
            foreach one in array tried loop
                exit when refusals = 20;
                begin
                    if stats_pipeline.write_rows(array[one]) = '{}' then
                        raise exception 'A trigger of the app''s has undone the change';
                    end if;
                    changed := changed || (one ->> 'id')::uuid;
                exception
                    when others then
                        refusals := refusals + 1;
                        perform stats_pipeline.put_aside(
                            'job', one ->> 'id', sqlerrm, sqlstate, jsonb_build_object('status', one -> 'status'));
                end;
            end loop;
    end;

    delete from stats_pipeline.set_aside as s where s.what = 'job' and s.key = any(changed::text[]);
    return changed;
end;
$$;

revoke all on function stats_pipeline.write_jobs(jsonb[]) from public, anon, authenticated;
