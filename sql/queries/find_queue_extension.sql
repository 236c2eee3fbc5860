-- Whether pgmq is installed, as an extension or as plain SQL, and which of the functions that we call are missing.
select
    to_regprocedure('pgmq.create(text)') is not null as installed,
    array(
        select f.signature
        from unnest(array[
            'pgmq.send(text,jsonb,integer)', 'pgmq.archive(text,bigint[])', 'pgmq.set_vt(text,bigint,integer)'
        ]) as f (signature)
        where to_regprocedure(f.signature) is null
    ) as missing;
