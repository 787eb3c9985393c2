# Losses: value, gradient and second derivative of each row, in as few passes over the outputs as they need. Plain C;
# what Python gives is checked in targets.pxi.
#
# What they return is a weighted sum over the rows and no mean, so that parts of a batch add up; dividing by the sum of
# the weights (loss_weight) is the caller's, who puts it into `scale`. The mean over the columns of an elementwise loss
# is taken here. dy may be NULL: the loss alone.
#
# A row counts with the weight of its sample times that of its class. Rows whose class index is ignore_index, and rows
# of sample weight 0, have the loss 0 and the gradient 0, whatever their outputs are. So have, with ignore_nan, the
# elements whose target is NaN; a row then counts with the part of its targets that are known.
#
# Rows of y, dy, v and hv are padded to VL, those of targets are not. The padding of y is zero, or for the losses of
# classes anything; that of dy and hv is set to zero: the products rely on it.
#
# There are two lists, with the functions of each entry below, side by side:
#
#     ELEMENTWISE_LOSSES  functions of an output y and a target t; NAME_element gives the loss and its derivative,
#                         NAME_curvature the second derivative. The column says whether both are 0 at y = t = 0, as they
#                         are then in the padding.
#     ROW_LOSSES          functions of a row of outputs; NAME_rows and NAME_hessian do the work of loss_rows and
#                         loss_hessian_rows below.
#
# The numbers of a formula stand in `param`, in the order in which the Python class gives them.

cdef extern from *:
    """
    #define ELEMENTWISE_LOSSES(X, ...)                  \\
        X(LOSS_MSE, mse, 1, ##__VA_ARGS__)              \\
        X(LOSS_L1, l1, 1, ##__VA_ARGS__)                \\
        X(LOSS_HUBER, huber, 1, ##__VA_ARGS__)          \\
        X(LOSS_BCE, bce, 0, ##__VA_ARGS__)              \\
        X(LOSS_POISSON, poisson, 0, ##__VA_ARGS__)      \\
        X(LOSS_QUANTILE, quantile, 1, ##__VA_ARGS__)

    #define ROW_LOSSES(X, ...)                          \\
        X(LOSS_CROSS_ENTROPY, cross_entropy, 0, ##__VA_ARGS__) \\
        X(LOSS_NLL, nll, 0, ##__VA_ARGS__)              \\
        X(LOSS_GAUSSIAN, gaussian, 0, ##__VA_ARGS__)

    #define LOSS_KIND(KIND, name, zero, ...) KIND,
    typedef enum { LOSS_NONE, ELEMENTWISE_LOSSES(LOSS_KIND) ROW_LOSSES(LOSS_KIND) N_LOSSES } LossKind;
    #define LOSS_NAME(KIND, name, zero, ...) #name,
    static const char *const LOSS_NAMES[] = { "", ELEMENTWISE_LOSSES(LOSS_NAME) ROW_LOSSES(LOSS_NAME) };

    #define LOSS_ELEMENT(KIND, name, zero, kind, ...) (kind) == KIND ? name##_element(__VA_ARGS__) :
    #define loss_element(...) (ELEMENTWISE_LOSSES(LOSS_ELEMENT, __VA_ARGS__) missing_kernel())
    #define LOSS_CURVATURE(KIND, name, zero, kind, ...) (kind) == KIND ? name##_curvature(__VA_ARGS__) :
    #define loss_curvature(...) (ELEMENTWISE_LOSSES(LOSS_CURVATURE, __VA_ARGS__) missing_kernel())

    #define ELEMENTWISE_SUM(KIND, name, zero, kind, ...) (kind) == KIND ? elementwise(KIND, zero, __VA_ARGS__) :
    #define elementwise_loss(...) (ELEMENTWISE_LOSSES(ELEMENTWISE_SUM, __VA_ARGS__) NAN)
    #define ELEMENTWISE_SECOND(KIND, name, zero, ...) case KIND: elementwise_hessian(KIND, __VA_ARGS__); break;
    #define elementwise_second(kind, ...) do switch (kind) { ELEMENTWISE_LOSSES(ELEMENTWISE_SECOND, __VA_ARGS__) \\
        default: __builtin_trap(); } while (0)
    #define ROW_SUM(KIND, name, zero, kind, ...) (kind) == KIND ? name##_rows(__VA_ARGS__) :
    #define row_loss(...) (ROW_LOSSES(ROW_SUM, __VA_ARGS__) NAN)
    #define ROW_SECOND(KIND, name, zero, ...) case KIND: name##_hessian(__VA_ARGS__); break;
    #define row_second(kind, ...) do switch (kind) { ROW_LOSSES(ROW_SECOND, __VA_ARGS__) \\
        default: __builtin_trap(); } while (0)
    #define ROW_IS(KIND, name, zero, kind) (kind) == KIND ||
    #define is_row_loss(kind) (ROW_LOSSES(ROW_IS, kind) 0)
    """
    ctypedef int LossKind
    const LossKind LOSS_NONE
    const LossKind LOSS_MSE
    const int N_LOSSES
    const char* LOSS_NAMES[]

cdef enum:
    LOSS_PARAMETERS = 4

cdef struct LossSpec:
    LossKind kind
    bint labels             # targets are int64 class indices, one a row; if not, rows of reals
    bint mean               # if not, losses are summed
    double[LOSS_PARAMETERS] param
    bint ignore_nan         # elements whose target is NaN do not count
    Py_ssize_t targets      # reals in a row of targets
    int64_t ignore_index
    real* column            # NULL, or a number for each column, padded with zeros: class weight, pos_weight, quantile

cdef extern from *:
    vf loss_element(int kind, const LossSpec* spec, vf y, vf t, vf c, vf* derivative) nogil
    vf loss_curvature(int kind, const LossSpec* spec, vf y, vf t, vf c) nogil
    bint is_row_loss(int kind) nogil
    double elementwise_loss(int kind, const LossSpec* spec, Py_ssize_t batch, Py_ssize_t n, const real* y,
                            Py_ssize_t y_row, const real* target, Py_ssize_t target_row, const real* weight,
                            double scale, real* dy, Py_ssize_t dy_row) nogil
    void elementwise_second(int kind, const LossSpec* spec, Py_ssize_t batch, Py_ssize_t n, const real* y,
                            Py_ssize_t y_row, const real* target, Py_ssize_t target_row, const real* weight,
                            double scale, const real* v, Py_ssize_t v_row, real* hv, Py_ssize_t hv_row) nogil
    double row_loss(int kind, const LossSpec* spec, Py_ssize_t batch, Py_ssize_t n, const real* y, Py_ssize_t y_row,
                    const char* target, Py_ssize_t target_bytes, const real* weight, double scale, real* dy,
                    Py_ssize_t dy_row, Py_ssize_t* correct) nogil
    void row_second(int kind, const LossSpec* spec, Py_ssize_t batch, Py_ssize_t n, const real* y, Py_ssize_t y_row,
                    const char* target, Py_ssize_t target_bytes, const real* weight, double scale, const real* v,
                    Py_ssize_t v_row, real* hv, Py_ssize_t hv_row) nogil

# name -> number, for what Python hands back
LOSSES = {LOSS_NAMES[i].decode("ascii"): i for i in range(1, N_LOSSES)}


cdef inline vf load_part(const real* row, Py_ssize_t j, Py_ssize_t n) noexcept nogil:
    """Elements j and following of a row of n that may end there; zero after its end."""
    return vf_load(row + j) if j + VL <= n else vf_load_first(row + j, n - j)


cdef inline vf cut_off(vf a, Py_ssize_t j, Py_ssize_t n, double rest) noexcept nogil:
    """Elements j and following of a row of n, `rest` after its end."""
    return a if j + VL <= n else vf_first(a, n - j, number(rest))


cdef inline vf column_part(const LossSpec* spec, Py_ssize_t j) noexcept nogil:
    """The columns' numbers from j on; without any, ones."""
    return vf_load(spec.column + j) if spec.column != NULL else number(1)


cdef inline double row_weight(const real* weight, Py_ssize_t i) noexcept nogil:
    if weight == NULL:
        return 1
    return weight[i]


cdef inline Py_ssize_t known_targets(const LossSpec* spec, const real* target) noexcept nogil:
    """How many of a row's targets are not NaN."""
    cdef Py_ssize_t j, known = 0
    for j in range(spec.targets):
        known += target[j] == target[j]
    return known


cdef inline vf where_known(vf t, vf a) noexcept nogil:
    """a, and 0 where the target is NaN."""
    return vf_select_gt(vf_abs(t), number(-1), a, number(0))


# ---- elementwise losses: functions of an output y, a target t and the column's number c. Where a derivative jumps (L1,
# quantile), it is 0.

cdef inline vf v_log(vf x) noexcept nogil:
    """log(x), lane by lane with the C library's: for losses that are not in a hurry."""
    cdef real[16] lane
    cdef int i
    vf_store(lane, x)
    for i in range(<int>VL):
        lane[i] = <real>log(lane[i])
    return vf_load(lane)


cdef inline vf sign_or_zero(vf d, vf above, vf below) noexcept nogil:
    """above for d > 0, below for d < 0; a zero or a NaN stays what it is."""
    return vf_select_gt(d, number(0), above, vf_select_gt(number(0), d, below, d))


# MSE: (y - t)**2

cdef inline vf mse_element "mse_element"(const LossSpec* spec, vf y, vf t, vf c, vf* derivative) noexcept nogil:
    cdef vf d = y - t
    derivative[0] = d + d
    return d * d


cdef inline vf mse_curvature "mse_curvature"(const LossSpec* spec, vf y, vf t, vf c) noexcept nogil:
    return number(2)


# L1: |y - t|

cdef inline vf l1_element "l1_element"(const LossSpec* spec, vf y, vf t, vf c, vf* derivative) noexcept nogil:
    cdef vf d = y - t
    derivative[0] = sign_or_zero(d, number(1), number(-1))
    return vf_abs(d)


cdef inline vf l1_curvature "l1_curvature"(const LossSpec* spec, vf y, vf t, vf c) noexcept nogil:
    return number(0)


# Huber, SmoothL1: d**2 / 2 for |d| <= delta, else delta (|d| - delta / 2), d = y - t; divided by `unit`, which is 1 or
# SmoothL1Loss's beta. With e = d cut off at +-delta this is e (d - e / 2). A unit of 0 in this precision: L1.
# param: delta, unit

cdef inline vf huber_element "huber_element"(const LossSpec* spec, vf y, vf t, vf c, vf* derivative) noexcept nogil:
    cdef vf d, e
    if <real>spec.param[1] == 0:
        return l1_element(spec, y, t, c, derivative)
    d = y - t
    e = clamp(d, number(spec.param[0]))
    derivative[0] = e / number(spec.param[1])
    return derivative[0] * vf_fma(number(-0.5), e, d)


cdef inline vf huber_curvature "huber_curvature"(const LossSpec* spec, vf y, vf t, vf c) noexcept nogil:
    if <real>spec.param[1] == 0:
        return number(0)
    return vf_select_gt(vf_abs(y - t), number(spec.param[0]), number(0), number(1 / spec.param[1]))


# BCE: (1 - t) softplus(y) + c t softplus(-y), where softplus(y) = max(y, 0) + log(1 + exp(-|y|)): no sum of terms that
# cancel, and no exponential that overflows. A term without a share is 0, also where its softplus is infinite. Label
# smoothing makes t (1 - smoothing) + smoothing / 2 of a target.
# param: label smoothing

cdef inline vf smoothed(const LossSpec* spec, vf t) noexcept nogil:
    return vf_fma(number(1 - spec.param[0]), t, number(spec.param[0] / 2))


cdef inline vf bce_element "bce_element"(const LossSpec* spec, vf y, vf t, vf c, vf* derivative) noexcept nogil:
    cdef vf e = v_exp(minus_abs(y))
    cdef vf q = number(1) / (number(1) + e)                 # sigmoid(|y|)
    cdef vf l = v_log1p(e)
    cdef vf d
    t = smoothed(spec, t)
    d = number(1) - t
    t = c * t
    derivative[0] = vf_select_gt(y, number(0), d * q - t * (e * q), d * (e * q) - t * q)
    q = vf_min(number(0), vf_max(number(0), y))             # 0, or NaN
    e = vf_select_gt(d, number(0), vf_max(number(0), y) + l, q)
    l = vf_select_gt(t, number(0), vf_max(number(0), -y) + l, q)
    return vf_fma(d, e, t * l)


cdef inline vf bce_curvature "bce_curvature"(const LossSpec* spec, vf y, vf t, vf c) noexcept nogil:
    cdef vf e = v_exp(minus_abs(y))
    cdef vf q = number(1) / (number(1) + e)
    t = smoothed(spec, t)
    return vf_fma(c, t, number(1) - t) * (e * q * q)


# Poisson: exp(y) - t y with log_input, else y - t log(y + eps); with `full` plus Stirling's log(t!).
# param: log_input, full, eps

cdef inline vf stirling(vf t) noexcept nogil:
    """log(t!) by Stirling's formula for t > 1, else 0, as PyTorch has it: t log t - t + log(2 pi t) / 2."""
    cdef vf near = vf_fma(t, v_log(t), number(0.5) * v_log(number(6.283185307179586) * t) - t)
    return vf_select_gt(t, number(1), near, number(0))


cdef inline vf poisson_element "poisson_element"(const LossSpec* spec, vf y, vf t, vf c,
                                                 vf* derivative) noexcept nogil:
    cdef vf d, e, l
    if spec.param[0] != 0:
        e = v_exp(y)
        derivative[0] = e - t
        l = e - t * y
    else:
        d = y + number(spec.param[2])
        derivative[0] = number(1) - t / d
        l = y - t * v_log(d)
    return l + stirling(t) if spec.param[1] != 0 else l


cdef inline vf poisson_curvature "poisson_curvature"(const LossSpec* spec, vf y, vf t, vf c) noexcept nogil:
    cdef vf q
    if spec.param[0] != 0:
        return v_exp(y)
    q = number(1) / (y + number(spec.param[2]))
    return t * q * q


# quantile: max(c d, (c - 1) d), d = t - y

cdef inline vf quantile_element "quantile_element"(const LossSpec* spec, vf y, vf t, vf c,
                                                   vf* derivative) noexcept nogil:
    cdef vf d = t - y
    derivative[0] = sign_or_zero(d, -c, number(1) - c)
    return vf_max((c - number(1)) * d, c * d)


cdef inline vf quantile_curvature "quantile_curvature"(const LossSpec* spec, vf y, vf t, vf c) noexcept nogil:
    return number(0)


cdef inline vf counted_element(const int kind, const LossSpec* spec, vf y, vf t, vf c, vf* derivative) noexcept nogil:
    """loss_element, of the elements that count."""
    cdef vf value = loss_element(kind, spec, y, t, c, derivative)
    if spec.ignore_nan:
        derivative[0] = where_known(t, derivative[0])
        value = where_known(t, value)
    return value


cdef inline double elementwise "elementwise"(const int kind, const bint zero, const LossSpec* spec, Py_ssize_t batch,
                                             Py_ssize_t n, const real* y, Py_ssize_t y_row, const real* target,
                                             Py_ssize_t target_row, const real* weight, double scale, real* dy,
                                             Py_ssize_t dy_row) noexcept nogil:
    """Weighted sum over the rows of the sum, or mean, of the elements' losses; dy = scale weight derivative (/ n).

    zero: at y = t = 0 the loss and its derivative are 0, so the padding needs no mask. y, t (batch, n): 3 numbers moved
    for each element.
    """
    cdef double total = 0, w, share = 1.0 / n if spec.mean else 1.0
    cdef vf factor, derivative, value, sums
    cdef Py_ssize_t i, j, vectors = n // VL * VL, lanes = smaller(n, VL)
    for i in range(batch):
        w = row_weight(weight, i)
        if w == 0:
            if dy != NULL:
                memset(dy, 0, round_up(n, VL) * sizeof(real))
        else:
            factor = vf_set(<real>(scale * w * share))
            sums = vf_set(0)
            for j from 0 <= j < vectors by VL:
                sums = sums + counted_element(kind, spec, vf_load(y + j), vf_load(target + j), column_part(spec, j),
                                              &derivative)
                if dy != NULL:
                    vf_store(dy + j, factor * derivative)
            if vectors < n:
                value = counted_element(kind, spec, vf_load(y + vectors), vf_load_first(target + vectors, n - vectors),
                                        column_part(spec, vectors), &derivative)
                sums = sums + (value if zero else vf_first(value, n - vectors, number(0)))
                if dy != NULL:
                    derivative = factor * derivative
                    vf_store(dy + vectors, derivative if zero else vf_first(derivative, n - vectors, number(0)))
            total += w * vf_sum(sums, lanes)
        y += y_row
        target += target_row
        if dy != NULL:
            dy += dy_row
    return total / n if spec.mean else total


cdef inline void elementwise_hessian "elementwise_hessian"(const int kind, const LossSpec* spec, Py_ssize_t batch,
                                                           Py_ssize_t n, const real* y, Py_ssize_t y_row,
                                                           const real* target, Py_ssize_t target_row,
                                                           const real* weight, double scale, const real* v,
                                                           Py_ssize_t v_row, real* hv,
                                                           Py_ssize_t hv_row) noexcept nogil:
    """hv = scale weight curvature(y, t) v (/ n)."""
    cdef double w
    cdef vf h, t
    cdef Py_ssize_t i, j
    for i in range(batch):
        w = row_weight(weight, i)
        if w == 0:
            memset(hv, 0, round_up(n, VL) * sizeof(real))
        else:
            w *= scale / n if spec.mean else scale
            for j from 0 <= j < n by VL:
                t = load_part(target, j, n)
                h = loss_curvature(kind, spec, vf_load(y + j), t, column_part(spec, j))
                h = vf_set(<real>w) * h * vf_load(v + j)
                if spec.ignore_nan:
                    h = where_known(t, h)
                vf_store(hv + j, cut_off(h, j, n, 0))
        y += y_row
        target += target_row
        v += v_row
        hv += hv_row


# ---- losses of classes: functions of a row

cdef Py_ssize_t first_largest(Py_ssize_t n, const real* a) noexcept nogil:
    """The index of the first largest of n numbers; -1 if one of them is NaN."""
    cdef Py_ssize_t j, best = 0
    cdef bint nan = False
    for j in range(n):
        nan = nan or a[j] != a[j]
        if a[j] > a[best]:
            best = j
    return -1 if nan else best


cdef inline double label_share(const LossSpec* spec, int64_t label) noexcept nogil:
    """What of a row's weight falls to its label alone: the class weight, less label smoothing's part."""
    cdef double share = 1 - spec.param[0]
    if spec.column != NULL:
        share *= spec.column[label]
    return share


cdef inline vf class_shares(bint labels, const LossSpec* spec, const real* p, Py_ssize_t j,
                            Py_ssize_t n) noexcept nogil:
    """What falls to the classes j and following: class weight ((1 - smoothing) p + smoothing / n).

    With labels without label_share, which comes on top. There are column numbers wherever there is smoothing.
    """
    cdef vf a = number(0) if labels else load_part(p, j, n)
    if spec.column != NULL:
        a = vf_load(spec.column + j) * vf_fma(number(1 - spec.param[0]), a, number(spec.param[0] / n))
    return a


cdef inline vf logits(const real* z, Py_ssize_t j, Py_ssize_t n) noexcept nogil:
    """Logits j and following of a row; -inf after its end, where the exponential is zero."""
    return cut_off(vf_load(z + j), j, n, -INFINITY)


cdef inline real largest_logit(const real* z, Py_ssize_t n) noexcept nogil:
    cdef vf top = logits(z, 0, n)
    cdef Py_ssize_t j
    for j from VL <= j < n by VL:
        top = vf_max(top, logits(z, j, n))
    return vf_largest(top)


cdef inline double cross_entropy_sum(bint labels, bint dense, const LossSpec* spec, Py_ssize_t batch, Py_ssize_t n,
                                     const real* z, Py_ssize_t z_row, const char* target, Py_ssize_t target_bytes,
                                     const real* weight, double scale, real* dz, Py_ssize_t dz_row,
                                     Py_ssize_t* correct) noexcept nogil:
    """Cross-entropy of softmax(z) with shares a of the classes: sum of a_j (log(sum of exp(z - max)) + max - z_j);
    dz = scale weight (A softmax(z) - a), where A is the sum of a.

    a is class weight x ((1 - smoothing) p + smoothing / n); p is 1 for the label, or the row of class probabilities.
    dense: it has more than the label's share. Counts the rows whose first largest logit is the label's (the most
    probable class's). z (batch, n): one exponential, two passes over z.
    """
    cdef Py_ssize_t i, j
    cdef int64_t label = 0
    cdef vf a, e, x, sums, mass, cross
    cdef real largest
    cdef double w, share = 0, total_share, row_loss, exp_sum, total = 0
    cdef const real* p = <const real*>target
    cdef bint ignored = False
    for i in range(batch):
        w = row_weight(weight, i)
        if labels:
            label = (<const int64_t*>target)[0]
            ignored = label == spec.ignore_index
        if w == 0 or ignored:
            if dz != NULL:
                memset(dz, 0, round_up(n, VL) * sizeof(real))
            if not ignored:
                correct[0] += first_largest(n, z) == (label if labels else first_largest(n, p))
        else:
            largest = largest_logit(z, n)
            sums = mass = cross = vf_set(0)
            for j from 0 <= j < n by VL:
                x = logits(z, j, n) - vf_set(largest)
                e = v_exp(x)
                sums = sums + e
                if dz != NULL:
                    vf_store(dz + j, e)
                if dense:
                    a = class_shares(labels, spec, p, j, n)
                    mass = mass + a
                    cross = cross - vf_select_gt(a, number(0), a * x, number(0))    # 0 x inf: no share, no loss
            exp_sum = vf_sum(sums, VL)
            total_share = row_loss = 0
            if dense:
                total_share = vf_sum(mass, VL)
                row_loss = vf_sum(cross, VL)
            if labels:
                share = label_share(spec, label)
                total_share += share
                if share != 0:
                    row_loss += share * (<double>largest - <double>z[label])
                if z[label] == largest:
                    for j in range(label):
                        if z[j] == largest:
                            break
                    else:
                        correct[0] += 1
            else:
                correct[0] += first_largest(n, z) == first_largest(n, p)
            total += w * (row_loss + total_share * log(exp_sum))
            if dz != NULL:
                w *= scale
                e = vf_set(<real>(w * total_share / exp_sum))
                for j from 0 <= j < n by VL:
                    x = e * vf_load(dz + j)
                    if dense:
                        x = x - vf_set(<real>w) * class_shares(labels, spec, p, j, n)
                    vf_store(dz + j, x)
                if labels:
                    dz[label] -= <real>(w * share)
        z += z_row
        target += target_bytes
        p = <const real*>target
        if dz != NULL:
            dz += dz_row
    return total


cdef double cross_entropy_rows "cross_entropy_rows"(const LossSpec* spec, Py_ssize_t batch, Py_ssize_t n, const real* z,
                                                    Py_ssize_t z_row, const char* target, Py_ssize_t target_bytes,
                                                    const real* weight, double scale, real* dz, Py_ssize_t dz_row,
                                                    Py_ssize_t* correct) noexcept nogil:
    """cross_entropy_sum for what the targets are. param: label smoothing."""
    if not spec.labels:
        return cross_entropy_sum(False, True, spec, batch, n, z, z_row, target, target_bytes, weight, scale, dz, dz_row,
                                 correct)
    if spec.param[0] > 0:
        return cross_entropy_sum(True, True, spec, batch, n, z, z_row, target, target_bytes, weight, scale, dz, dz_row,
                                 correct)
    return cross_entropy_sum(True, False, spec, batch, n, z, z_row, target, target_bytes, weight, scale, dz, dz_row,
                             correct)


cdef void cross_entropy_hessian "cross_entropy_hessian"(const LossSpec* spec, Py_ssize_t batch, Py_ssize_t n,
                                                        const real* z, Py_ssize_t z_row, const char* target,
                                                        Py_ssize_t target_bytes, const real* weight, double scale,
                                                        const real* v, Py_ssize_t v_row, real* hv,
                                                        Py_ssize_t hv_row) noexcept nogil:
    """hv = scale weight A p (v - p . v) with p = softmax(z); A as in cross_entropy_sum."""
    cdef Py_ssize_t i, j
    cdef bint dense = not spec.labels or spec.param[0] > 0
    cdef int64_t label = 0
    cdef vf e, sums, mass, dot
    cdef real largest
    cdef double w, exp_sum, average
    for i in range(batch):
        w = row_weight(weight, i)
        if spec.labels:
            label = (<const int64_t*>target)[0]
        if w == 0 or spec.labels and label == spec.ignore_index:
            memset(hv, 0, round_up(n, VL) * sizeof(real))
        else:
            largest = largest_logit(z, n)
            sums = mass = dot = vf_set(0)
            for j from 0 <= j < n by VL:
                e = v_exp(logits(z, j, n) - vf_set(largest))
                vf_store(hv + j, e)
                sums = sums + e
                dot = vf_fma(e, cut_off(vf_load(v + j), j, n, 0), dot)
                if dense:
                    mass = mass + class_shares(spec.labels, spec, <const real*>target, j, n)
            exp_sum = vf_sum(sums, VL)
            average = vf_sum(dot, VL) / exp_sum
            w *= scale / exp_sum * (vf_sum(mass, VL) + (label_share(spec, label) if spec.labels else 0))
            for j from 0 <= j < n by VL:
                e = vf_set(<real>w) * vf_load(hv + j) * (vf_load(v + j) - vf_set(<real>average))
                vf_store(hv + j, cut_off(e, j, n, 0))
        z += z_row
        target += target_bytes
        v += v_row
        hv += hv_row


cdef double nll_rows "nll_rows"(const LossSpec* spec, Py_ssize_t batch, Py_ssize_t n, const real* y, Py_ssize_t y_row,
                                const char* target, Py_ssize_t target_bytes, const real* weight, double scale, real* dy,
                                Py_ssize_t dy_row, Py_ssize_t* correct) noexcept nogil:
    """Sum of -class weight x y[label], y being log-probabilities (batch, n); NaN if any of a row's outputs is."""
    cdef Py_ssize_t i, best
    cdef int64_t label
    cdef double w, total = 0
    for i in range(batch):
        label = (<const int64_t*>target)[0]
        w = row_weight(weight, i)
        if dy != NULL:
            memset(dy, 0, round_up(n, VL) * sizeof(real))
        if label != spec.ignore_index:
            best = first_largest(n, y)
            correct[0] += best == label
            w *= label_share(spec, label)
            if w != 0:
                total -= w * (y[label] if best >= 0 else <double>NAN)
                if dy != NULL:
                    dy[label] = <real>(-scale * w)
        y += y_row
        target += target_bytes
        if dy != NULL:
            dy += dy_row
    return total


cdef void nll_hessian "nll_hessian"(const LossSpec* spec, Py_ssize_t batch, Py_ssize_t n, const real* y,
                                    Py_ssize_t y_row, const char* target, Py_ssize_t target_bytes, const real* weight,
                                    double scale, const real* v, Py_ssize_t v_row, real* hv,
                                    Py_ssize_t hv_row) noexcept nogil:
    """Zero: the loss is linear in the outputs."""
    cdef Py_ssize_t i
    for i in range(batch):
        memset(hv + i * hv_row, 0, round_up(n, VL) * sizeof(real))


# ---- Gaussian: a row of k means m and then k logarithms of variances, or variances, s; k targets t. With d = m - t and
# v the variance, or eps where that is larger: (log(v) + d**2 / v) / 2, with `full` plus log(2 pi) / 2. The gradient of
# s is that of v's formula also where eps stands for it, as in PyTorch. A variance below 0 makes NaN.
# param: log_var, full, eps

cdef struct Variance:
    double log          # log(v)
    double inverse      # 1 / v
    double slope        # dv/ds / v


cdef inline Variance variance_of(const LossSpec* spec, double s) noexcept nogil:
    cdef double v = exp(s) if spec.param[0] != 0 else s
    cdef bint raised = v < spec.param[2]
    cdef Variance a
    if v < 0:
        a.log = a.inverse = a.slope = NAN
        return a
    a.inverse = 1 / (spec.param[2] if raised else v)
    if spec.param[0] == 0:
        a.slope = a.inverse
        a.log = -log(a.inverse)
    else:
        a.slope = v * a.inverse if raised else 1
        a.log = log(spec.param[2]) if raised else s
    return a


cdef double gaussian_rows "gaussian_rows"(const LossSpec* spec, Py_ssize_t batch, Py_ssize_t n, const real* y,
                                          Py_ssize_t y_row, const char* target, Py_ssize_t target_bytes,
                                          const real* weight, double scale, real* dy, Py_ssize_t dy_row,
                                          Py_ssize_t* correct) noexcept nogil:
    """Weighted sum over the rows of the sum, or mean, of the targets' losses. y (batch, 2 k), an exponential and at
    most one logarithm for each target."""
    cdef Py_ssize_t i, j, k = n // 2
    cdef double w, d, z, row_loss, total = 0, share = 1.0 / k if spec.mean else 1.0
    cdef double constant = 0.9189385332046727 if spec.param[1] != 0 else 0
    cdef const real* t
    cdef Variance v
    for i in range(batch):
        w = row_weight(weight, i) * share
        t = <const real*>target
        if dy != NULL:
            memset(dy, 0, round_up(n, VL) * sizeof(real))
        if w != 0:
            row_loss = 0
            for j in range(k):
                if spec.ignore_nan and t[j] != t[j]:
                    continue
                d = <double>y[j] - t[j]
                v = variance_of(spec, y[k + j])
                z = d * v.inverse
                row_loss += 0.5 * (v.log + d * z) + constant
                if dy != NULL:
                    dy[j] = <real>(scale * w * z)
                    dy[k + j] = <real>(scale * w * 0.5 * v.slope * (1 - d * z))
            total += w * row_loss
        y += y_row
        target += target_bytes
        if dy != NULL:
            dy += dy_row
    return total


cdef void gaussian_hessian "gaussian_hessian"(const LossSpec* spec, Py_ssize_t batch, Py_ssize_t n, const real* y,
                                              Py_ssize_t y_row, const char* target, Py_ssize_t target_bytes,
                                              const real* weight, double scale, const real* v, Py_ssize_t v_row,
                                              real* hv, Py_ssize_t hv_row) noexcept nogil:
    """hv = scale weight H v (/ k), H a 2 x 2 matrix for each target: dv/ds**2 d2/dv2 + d2v/ds2 d/dv for s."""
    cdef Py_ssize_t i, j, k = n // 2
    cdef double w, d, z, mean_s, s_s
    cdef const real* t
    cdef Variance a
    for i in range(batch):
        w = row_weight(weight, i) * (scale / k if spec.mean else scale)
        t = <const real*>target
        memset(hv, 0, round_up(n, VL) * sizeof(real))
        if w != 0:
            for j in range(k):
                if spec.ignore_nan and t[j] != t[j]:
                    continue
                d = <double>y[j] - t[j]
                a = variance_of(spec, y[k + j])
                z = d * a.inverse
                mean_s = -z * a.slope
                s_s = a.slope * a.slope * (d * z - 0.5)
                if spec.param[0] != 0:
                    s_s += 0.5 * a.slope * (1 - d * z)
                hv[j] = <real>(w * (a.inverse * v[j] + mean_s * v[k + j]))
                hv[k + j] = <real>(w * (mean_s * v[j] + s_s * v[k + j]))
        y += y_row
        target += target_bytes
        v += v_row
        hv += hv_row


# ---- whichever it is

cdef double loss_rows(const LossSpec* spec, Py_ssize_t batch, Py_ssize_t n, const real* y, Py_ssize_t y_row,
                      const char* target, Py_ssize_t target_bytes, const real* weight, double scale, real* dy,
                      Py_ssize_t dy_row, Py_ssize_t* correct) noexcept nogil:
    """Weighted sum of the rows' losses; dy = scale x weight x gradient. Adds the rows classified right to correct.

    y (batch, n), target of target_bytes a row, weight (batch,) or NULL, dy (batch, n) or NULL.
    """
    if is_row_loss(spec.kind):
        return row_loss(spec.kind, spec, batch, n, y, y_row, target, target_bytes, weight, scale, dy, dy_row, correct)
    return elementwise_loss(spec.kind, spec, batch, n, y, y_row, <const real*>target,
                            target_bytes // <Py_ssize_t>sizeof(real), weight, scale, dy, dy_row)


cdef void loss_hessian_rows(const LossSpec* spec, Py_ssize_t batch, Py_ssize_t n, const real* y, Py_ssize_t y_row,
                            const char* target, Py_ssize_t target_bytes, const real* weight, double scale,
                            const real* v, Py_ssize_t v_row, real* hv, Py_ssize_t hv_row) noexcept nogil:
    """hv = scale x weight x (second derivative of the row's loss in y) v."""
    if is_row_loss(spec.kind):
        row_second(spec.kind, spec, batch, n, y, y_row, target, target_bytes, weight, scale, v, v_row, hv, hv_row)
    else:
        elementwise_second(spec.kind, spec, batch, n, y, y_row, <const real*>target,
                           target_bytes // <Py_ssize_t>sizeof(real), weight, scale, v, v_row, hv, hv_row)


cdef double loss_weight(const LossSpec* spec, Py_ssize_t batch, const char* target, Py_ssize_t target_bytes,
                        const real* weight) noexcept nogil:
    """The sum of the rows' weights, which a mean is divided by: sample weight x class weight of the row's label.

    As in PyTorch, class weights do not count where the targets are class probabilities, nor does label smoothing.
    """
    cdef double total = 0, w
    cdef int64_t label
    cdef Py_ssize_t i
    if weight == NULL and not spec.labels and not spec.ignore_nan:
        return <double>batch
    for i in range(batch):
        w = row_weight(weight, i)
        if spec.ignore_nan:
            w *= <double>known_targets(spec, <const real*>(target + i * target_bytes)) / spec.targets
        if spec.labels:
            label = (<const int64_t*>(target + i * target_bytes))[0]
            if label == spec.ignore_index:
                w = 0
            elif spec.column != NULL:
                w *= spec.column[label]
        total += w
    return total


cdef inline double loss_scale(const LossSpec* spec, double weight) noexcept nogil:
    """What a sum of losses over rows of this loss_weight is multiplied by; 0 where the mean is not defined."""
    if not spec.mean:
        return 1
    return 1 / weight if weight > 0 else 0


cdef inline double mean_loss(const LossSpec* spec, double total, double weight) noexcept nogil:
    """The loss of some rows from the sums of their losses and weights; 0 where the mean is not defined."""
    if not spec.mean:
        return total
    return total / weight if weight > 0 else 0
