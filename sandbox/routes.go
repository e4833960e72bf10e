package sandbox

import (
	"net/http"
	"net/url"
	"strings"
)

type route uint8

const (
	routeUnknown route = iota
	routeIdentify
	routeDelete
	routeEvent
	routeAnonymous
	routeSuppress
	routeUnsuppress
	routeAddDevice
	routeDeleteDevice
	routeMerge
	routeEntity
	routeBatch
	routeRegion
	routeAuth
	routes
)

var routeNames = [routes]string{"unknown", "PUT /api/v1/customers/{id}", "DELETE /api/v1/customers/{id}",
	"POST /api/v1/customers/{id}/events", "POST /api/v1/events", "POST /api/v1/customers/{id}/suppress",
	"POST /api/v1/customers/{id}/unsuppress", "PUT /api/v1/customers/{id}/devices",
	"DELETE /api/v1/customers/{id}/devices/{device}", "POST /api/v1/merge_customers", "POST /api/v2/entity",
	"POST /api/v2/batch", "GET /api/v1/accounts/region", "GET /auth"}

// match finds the route of a request by its path as sent, so that an escaped slash
// stays inside its segment. status is 404 or 405 when there is none.
func match(method, path string) (r route, id, device string, status int) {
	fixed := func(m string, found route) (route, string, string, int) {
		if method != m {
			return routeUnknown, "", "", http.StatusMethodNotAllowed
		}
		return found, "", "", 0
	}
	switch path {
	case "/api/v2/batch":
		return fixed(http.MethodPost, routeBatch)
	case "/api/v2/entity":
		return fixed(http.MethodPost, routeEntity)
	case "/api/v1/accounts/region":
		return fixed(http.MethodGet, routeRegion)
	case "/auth":
		return fixed(http.MethodGet, routeAuth)
	case "/api/v1/events":
		return fixed(http.MethodPost, routeAnonymous)
	case "/api/v1/merge_customers":
		return fixed(http.MethodPost, routeMerge)
	}
	rest, ok := strings.CutPrefix(path, "/api/v1/customers/")
	if !ok {
		return routeUnknown, "", "", http.StatusNotFound
	}
	segments := strings.Split(rest, "/")
	for i, v := range segments {
		u, err := url.PathUnescape(v)
		if err != nil || v == "" {
			return routeUnknown, "", "", http.StatusNotFound
		}
		segments[i] = u
	}
	var shape personPath
	if shape.segments = len(segments); shape.segments > 1 {
		shape.verb = segments[1]
	}
	methods := personRoutes[shape]
	if methods == nil {
		return routeUnknown, "", "", http.StatusNotFound
	}
	if r = methods[method]; r == routeUnknown {
		return r, "", "", http.StatusMethodNotAllowed
	}
	if len(segments) == 3 {
		device = segments[2]
	}
	return r, segments[0], device, 0
}

// A personPath is what follows /api/v1/customers/: how many segments, and the
// second of them.
type personPath struct {
	segments int
	verb     string
}

var personRoutes = map[personPath]map[string]route{
	{1, ""}:           {http.MethodPut: routeIdentify, http.MethodDelete: routeDelete},
	{2, "events"}:     {http.MethodPost: routeEvent},
	{2, "suppress"}:   {http.MethodPost: routeSuppress},
	{2, "unsuppress"}: {http.MethodPost: routeUnsuppress},
	{2, "devices"}:    {http.MethodPut: routeAddDevice},
	{3, "devices"}:    {http.MethodDelete: routeDeleteDevice},
}

// removeDots resolves . and .. as proxies and URL libraries on the way do, which
// is why such ids cannot be used in v1 paths.
func removeDots(path string) (string, bool) {
	if !strings.Contains(path+"/", "/./") && !strings.Contains(path+"/", "/../") {
		return path, false
	}
	var out []string
	for segment := range strings.SplitSeq(strings.TrimPrefix(path, "/"), "/") {
		switch segment {
		case ".":
		case "..":
			out = out[:max(0, len(out)-1)]
		default:
			out = append(out, segment)
		}
	}
	return "/" + strings.Join(out, "/"), true
}
