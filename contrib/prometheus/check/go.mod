module ampcio/contrib/prometheus/check

go 1.26.0
