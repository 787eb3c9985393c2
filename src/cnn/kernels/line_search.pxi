# A line search for the strong Wolfe conditions, of More and Thuente (ACM TOMS 20, 1994), by the formulas and with the
# constants of MINPACK-2's dcsrch and dcstep as L-BFGS-B calls them. phi(t) is the loss at a step t along a direction of
# descent. The caller evaluates: `search_begin` gets phi(0) and its derivative, each `search_next` those at `t`.
#
#     phi(t) <= phi(0) + DECREASE t phi'(0)         enough decrease
#     |phi'(t)| <= CURVATURE |phi'(0)|              and flat enough
#
# It keeps the best step so far, x, and y, the other end of an interval with a minimiser once there is one.

cdef enum Found:
    FOUND_NOTHING           # evaluate at t, and go on
    FOUND_STEP              # t, the last one that was evaluated
    FOUND_NO_STEP           # nothing lower within rounding

cdef struct LineSearch:
    double t                # where to evaluate
    double most             # t stays below
    double phi_0
    double slope_0
    double t_x
    double phi_x
    double slope_x
    double t_y
    double phi_y
    double slope_y
    double low              # t stays between
    double high
    double width            # of the interval, and of that before
    double width_before
    bint bracketed
    bint second_stage       # the interval is that of phi itself, not of phi less the least decrease

cdef double DECREASE = 1e-3, CURVATURE = 0.9, NARROW = 0.1, MOST_STEP = 1e10


cdef void search_begin(LineSearch* s, double phi, double slope, double t, double most) noexcept nogil:
    """Begin with a trial step t of at most `most`; slope: the derivative at 0, negative."""
    memset(s, 0, sizeof(LineSearch))
    s.t, s.most = t, most
    s.phi_0 = s.phi_x = s.phi_y = phi
    s.slope_0 = s.slope_x = s.slope_y = slope
    s.width, s.width_before = most, 2 * most
    s.low, s.high = 0, 5 * t


cdef Found search_next(LineSearch* s, double phi, double slope) noexcept nogil:
    """Take phi and its derivative at t, which are finite: whether t is good, or the next t."""
    cdef double least = DECREASE * s.slope_0, enough = s.phi_0 + s.t * least, t = s.t
    if not s.second_stage and phi <= enough and slope >= 0:
        s.second_stage = True
    if phi <= enough and fabs(slope) <= -CURVATURE * s.slope_0:
        return FOUND_STEP
    if ((s.bracketed and (t <= s.low or t >= s.high or s.high - s.low <= NARROW * s.high))
            or (t == s.most and phi <= enough and slope <= least)):
        return FOUND_STEP if phi < s.phi_0 else FOUND_NO_STEP
    if not s.second_stage and phi <= s.phi_x and phi > enough:
        # of phi less the least decrease
        s.phi_x -= s.t_x * least
        s.phi_y -= s.t_y * least
        s.slope_x -= least
        s.slope_y -= least
        narrow_interval(s, phi - t * least, slope - least)
        s.phi_x += s.t_x * least
        s.phi_y += s.t_y * least
        s.slope_x += least
        s.slope_y += least
    else:
        narrow_interval(s, phi, slope)
    if s.bracketed:
        if fabs(s.t_y - s.t_x) >= 0.66 * s.width_before:
            s.t = s.t_x + 0.5 * (s.t_y - s.t_x)
        s.width_before = s.width
        s.width = fabs(s.t_y - s.t_x)
        s.low, s.high = fmin(s.t_x, s.t_y), fmax(s.t_x, s.t_y)
    else:
        s.low, s.high = s.t + 1.1 * (s.t - s.t_x), s.t + 4 * (s.t - s.t_x)
    s.t = fmax(0, fmin(s.t, s.most))
    if s.bracketed and (s.t <= s.low or s.t >= s.high or s.high - s.low <= NARROW * s.high):
        s.t = s.t_x
    return FOUND_NOTHING if isfinite(s.t) else FOUND_NO_STEP


cdef double cubic_step(double a, double phi_a, double slope_a, double b, double phi_b, double slope_b,
                       double* gamma) noexcept nogil:
    """r, so that b + r (a - b) is the minimiser of the cubic with these values and derivatives at a and b."""
    cdef double theta = 3 * (phi_a - phi_b) / (b - a) + slope_a + slope_b
    cdef double scale = fmax(fabs(theta), fmax(fabs(slope_a), fabs(slope_b)))
    cdef double square = (theta / scale) * (theta / scale) - slope_a / scale * (slope_b / scale)
    gamma[0] = scale * sqrt(fmax(0, square))
    if b > a:
        gamma[0] = -gamma[0]
    return ((gamma[0] - slope_b) + theta) / (((gamma[0] - slope_b) + gamma[0]) + slope_a)


cdef void narrow_interval(LineSearch* s, double phi, double slope) noexcept nogil:
    """dcstep: bring the interval, and t, to where the next evaluation is worth most; phi and slope at the old t."""
    cdef double t = s.t, x = s.t_x, cubic, quadratic, chosen, r, gamma = 0
    cdef bint turned = slope * (s.slope_x / fabs(s.slope_x)) < 0
    if phi > s.phi_x:                       # higher: the minimiser is between
        cubic = x + cubic_step(t, phi, slope, x, s.phi_x, s.slope_x, &gamma) * (t - x)
        quadratic = x + s.slope_x / ((s.phi_x - phi) / (t - x) + s.slope_x) / 2 * (t - x)
        chosen = cubic if fabs(cubic - x) <= fabs(quadratic - x) else cubic + (quadratic - cubic) / 2
        s.bracketed = True
    elif turned:                            # lower, and rising: between as well
        cubic = t + cubic_step(x, s.phi_x, s.slope_x, t, phi, slope, &gamma) * (x - t)
        quadratic = t + slope / (slope - s.slope_x) * (x - t)
        chosen = cubic if fabs(cubic - t) > fabs(quadratic - t) else quadratic
        s.bracketed = True
    elif fabs(slope) < fabs(s.slope_x):     # lower, falling less: beyond
        r = cubic_step(x, s.phi_x, s.slope_x, t, phi, slope, &gamma)
        cubic = t + r * (x - t) if r < 0 and gamma != 0 else s.high if t > x else s.low
        quadratic = t + slope / (slope - s.slope_x) * (x - t)
        if s.bracketed:
            chosen = cubic if fabs(cubic - t) < fabs(quadratic - t) else quadratic
            r = t + 0.66 * (s.t_y - t)
            chosen = fmin(r, chosen) if t > x else fmax(r, chosen)
        else:
            chosen = cubic if fabs(cubic - t) > fabs(quadratic - t) else quadratic
            chosen = fmax(s.low, fmin(chosen, s.high))
    elif s.bracketed:                       # lower, falling no less
        chosen = t + cubic_step(s.t_y, s.phi_y, s.slope_y, t, phi, slope, &gamma) * (s.t_y - t)
    else:
        chosen = s.high if t > x else s.low
    if phi > s.phi_x:
        s.t_y, s.phi_y, s.slope_y = t, phi, slope
    else:
        if turned:
            s.t_y, s.phi_y, s.slope_y = s.t_x, s.phi_x, s.slope_x
        s.t_x, s.phi_x, s.slope_x = t, phi, slope
    s.t = chosen
