package sandbox

import "fmt"

// problem counts what is wrong and answers it in the shape of the route's API.
func (s *Sandbox) problem(rt route, status int, problems ...*problem) answer {
	s.mu.Lock()
	for _, p := range problems {
		s.countProblem(p)
	}
	s.mu.Unlock()
	if status >= 500 {
		return refusal(rt, status)
	}
	return answer{status: status, body: problemBody(rt, problems)}
}

// problemBody: v1 says {"meta":{"error":…}} for one and {"meta":{"errors":[…]}}
// for several, v2 {"errors":[{reason, field, message}]}.
func problemBody(rt route, problems []*problem) []byte {
	if rt == routeBatch || rt == routeEntity {
		out := []byte(`{"errors":[`)
		for i, p := range problems {
			if i > 0 {
				out = append(out, ',')
			}
			out = p.append(out, -1)
		}
		return append(out, "]}\n"...)
	}
	if len(problems) == 1 {
		return append(appendQuoted([]byte(`{"meta":{"error":`), problems[0].message), "}}\n"...)
	}
	out := []byte(`{"meta":{"errors":[`)
	for i, p := range problems {
		if i > 0 {
			out = append(out, ',')
		}
		out = appendQuoted(out, p.message)
	}
	return append(out, "]}}\n"...)
}

// append writes p as an entry of v2's errors; index -1 leaves batch_index out.
func (p *problem) append(out []byte, index int) []byte {
	out = append(out, '{')
	if index >= 0 {
		out = fmt.Appendf(out, `"batch_index":%d,`, index)
	}
	out = append(out, `"reason":"invalid",`...)
	if p.field != "" {
		out = append(appendQuoted(append(out, `"field":`...), p.field), ',')
	}
	return append(appendQuoted(append(out, `"message":`...), p.message), '}')
}
