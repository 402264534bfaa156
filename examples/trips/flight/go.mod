module flight

go 1.19
