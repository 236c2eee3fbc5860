-- The hall of fame, in its own order, for the demo.
select category, name, value
from public.aggregated_hall_of_fame
order by id;
