-- When each sensor was last evaluated, and on which host by which version.
select
    sensor,
    host,
    version,
    greatest(extract(epoch from clock_timestamp() - beaten_at), 0)::float as seconds_since
from stats_pipeline.sensor_beat
order by beaten_at desc;
