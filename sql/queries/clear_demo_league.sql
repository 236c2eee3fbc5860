-- Remove the league of an earlier demo, whose seasons have passed; the aggregates follow with the next refresh.
truncate public.player_matches, public.matches, public.players, public.seasons cascade;
