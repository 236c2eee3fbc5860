-- The only door through which the calendar enters: the day it is for a club now. A club's time zone is the column
-- time_zone or timezone of public.tenants, where the app has one; without it the setting stats_pipeline.timezone (of
-- the session, role or database), and without that the session's zone. A name that is no zone is passed over, and so
-- are POSIX rules, in which every made-up word with a number is a zone. The setting stats_pipeline.today (YYYY-MM-DD)
-- fixes the day, for tests and for repeating a past one.
drop function if exists stats_pipeline.stats_today();

create or replace function stats_pipeline.stats_today(target_tenant_id uuid)
returns date
language plpgsql
stable
set search_path = pg_catalog, pg_temp
as $$
declare
    fixed text := current_setting('stats_pipeline.today', true);
    lookup text;
    club_zone text;
    zone text;
begin
    if fixed <> '' then
        return fixed::date;
    end if;

    select
        format(
            'select t.%I::text from public.tenants as t where t.%I = $1 limit 1',
            min(a.attname) filter (where a.attname in ('time_zone', 'timezone')),
            min(a.attname) filter (where a.attname in ('id', 'tenant_id') and a.atttypid = 'uuid'::regtype)
        )
    into lookup
    from pg_attribute as a
    where a.attrelid = to_regclass('public.tenants')
        and a.attname in ('time_zone', 'timezone', 'id', 'tenant_id')
        and not a.attisdropped
        and has_column_privilege(a.attrelid, a.attnum, 'select')
    having bool_or(a.attname in ('time_zone', 'timezone'))
        and bool_or(a.attname in ('id', 'tenant_id') and a.atttypid = 'uuid'::regtype);
    if lookup is not null then
        execute lookup into club_zone using target_tenant_id;
    end if;

    foreach zone in array array[club_zone, current_setting('stats_pipeline.timezone', true)] loop
        if btrim(zone) ~* '^([a-z_/-]+|etc/gmt[+-]?(1[0-4]|[0-9])|(est5e|cst6c|mst7m|pst8p)dt)$' then
            begin
                return (now() at time zone btrim(zone))::date;
            exception when invalid_parameter_value then
                continue;
            end;
        end if;
    end loop;
    return current_date;
end;
$$;

revoke all on function stats_pipeline.stats_today(uuid) from public, anon, authenticated;
grant execute on function stats_pipeline.stats_today(uuid) to service_role;
