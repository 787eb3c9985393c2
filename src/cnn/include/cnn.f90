! Networks that cnn.to_c has written, in Fortran: interfaces of their functions, and a type for each kind of network.
!
!     cnn.to_c(model, "column.c", derivatives=1)                       in Python; NAME_f32 for a float32 model
!
!     use cnn
!     procedure(cnn_value_f64), bind(C, name="column") :: column       its functions, where the program declares
!     procedure(cnn_jacobian_f64), bind(C, name="column_jacobian") :: column_jacobian
!     type(cnn_network_f64) :: net
!     net = cnn_network_f64(8, 3, column)                              inputs, outputs
!     call net%predict(x, y)                                           x(8, n), y(3, n): a column of the array each
!
! vjp and jvp are of cnn_product. The arrays of C are row after row, which are columns here: jac(inputs, outputs). With
! parameters="argument" the interfaces end in _p, the parameters come first, and a cnn_trainable computes the mean
! squared error and its gradient. All are pure, and may run in do concurrent and in threads. Compile this file, which
! cnn.get_include() finds, and the C file with the program:
!
!     gcc -O3 -march=native -c column.c;  gfortran -O3 cnn.f90 program.f90 column.o -lm
module cnn
    use, intrinsic :: iso_c_binding, only: c_float, c_double
    implicit none
    private :: c_float, c_double
    private :: predict_f32, predict_f64, predict_p_f32, predict_p_f64, loss_and_grad_f32, loss_and_grad_f64

    abstract interface
        pure subroutine cnn_value_f32(x, y) bind(C)
            import :: c_float
            real(c_float), intent(in) :: x(*)
            real(c_float), intent(out) :: y(*)
        end subroutine
        pure subroutine cnn_jacobian_f32(x, y, jac) bind(C)
            import :: c_float
            real(c_float), intent(in) :: x(*)
            real(c_float), intent(out) :: y(*), jac(*)
        end subroutine
        pure subroutine cnn_product_f32(x, v, y, g) bind(C)
            import :: c_float
            real(c_float), intent(in) :: x(*), v(*)
            real(c_float), intent(out) :: y(*), g(*)
        end subroutine
        pure subroutine cnn_hvp_f32(x, v, dx, y, g, h) bind(C)
            import :: c_float
            real(c_float), intent(in) :: x(*), v(*), dx(*)
            real(c_float), intent(out) :: y(*), g(*), h(*)
        end subroutine
        pure subroutine cnn_hessian_f32(x, v, y, g, hess) bind(C)
            import :: c_float
            real(c_float), intent(in) :: x(*), v(*)
            real(c_float), intent(out) :: y(*), g(*), hess(*)
        end subroutine
        pure subroutine cnn_value_p_f32(p, x, y) bind(C)
            import :: c_float
            real(c_float), intent(in) :: p(*), x(*)
            real(c_float), intent(out) :: y(*)
        end subroutine
        pure subroutine cnn_jacobian_p_f32(p, x, y, jac) bind(C)
            import :: c_float
            real(c_float), intent(in) :: p(*), x(*)
            real(c_float), intent(out) :: y(*), jac(*)
        end subroutine
        pure subroutine cnn_product_p_f32(p, x, v, y, g) bind(C)
            import :: c_float
            real(c_float), intent(in) :: p(*), x(*), v(*)
            real(c_float), intent(out) :: y(*), g(*)
        end subroutine
        pure subroutine cnn_hvp_p_f32(p, x, v, dx, y, g, h) bind(C)
            import :: c_float
            real(c_float), intent(in) :: p(*), x(*), v(*), dx(*)
            real(c_float), intent(out) :: y(*), g(*), h(*)
        end subroutine
        pure subroutine cnn_hessian_p_f32(p, x, v, y, g, hess) bind(C)
            import :: c_float
            real(c_float), intent(in) :: p(*), x(*), v(*)
            real(c_float), intent(out) :: y(*), g(*), hess(*)
        end subroutine
        pure subroutine cnn_gradient_f32(p, x, v, y, dp) bind(C)
            import :: c_float
            real(c_float), intent(in) :: p(*), x(*), v(*)
            real(c_float), intent(out) :: y(*)
            real(c_float), intent(inout) :: dp(*)
        end subroutine
        pure subroutine cnn_value_f64(x, y) bind(C)
            import :: c_double
            real(c_double), intent(in) :: x(*)
            real(c_double), intent(out) :: y(*)
        end subroutine
        pure subroutine cnn_jacobian_f64(x, y, jac) bind(C)
            import :: c_double
            real(c_double), intent(in) :: x(*)
            real(c_double), intent(out) :: y(*), jac(*)
        end subroutine
        pure subroutine cnn_product_f64(x, v, y, g) bind(C)
            import :: c_double
            real(c_double), intent(in) :: x(*), v(*)
            real(c_double), intent(out) :: y(*), g(*)
        end subroutine
        pure subroutine cnn_hvp_f64(x, v, dx, y, g, h) bind(C)
            import :: c_double
            real(c_double), intent(in) :: x(*), v(*), dx(*)
            real(c_double), intent(out) :: y(*), g(*), h(*)
        end subroutine
        pure subroutine cnn_hessian_f64(x, v, y, g, hess) bind(C)
            import :: c_double
            real(c_double), intent(in) :: x(*), v(*)
            real(c_double), intent(out) :: y(*), g(*), hess(*)
        end subroutine
        pure subroutine cnn_value_p_f64(p, x, y) bind(C)
            import :: c_double
            real(c_double), intent(in) :: p(*), x(*)
            real(c_double), intent(out) :: y(*)
        end subroutine
        pure subroutine cnn_jacobian_p_f64(p, x, y, jac) bind(C)
            import :: c_double
            real(c_double), intent(in) :: p(*), x(*)
            real(c_double), intent(out) :: y(*), jac(*)
        end subroutine
        pure subroutine cnn_product_p_f64(p, x, v, y, g) bind(C)
            import :: c_double
            real(c_double), intent(in) :: p(*), x(*), v(*)
            real(c_double), intent(out) :: y(*), g(*)
        end subroutine
        pure subroutine cnn_hvp_p_f64(p, x, v, dx, y, g, h) bind(C)
            import :: c_double
            real(c_double), intent(in) :: p(*), x(*), v(*), dx(*)
            real(c_double), intent(out) :: y(*), g(*), h(*)
        end subroutine
        pure subroutine cnn_hessian_p_f64(p, x, v, y, g, hess) bind(C)
            import :: c_double
            real(c_double), intent(in) :: p(*), x(*), v(*)
            real(c_double), intent(out) :: y(*), g(*), hess(*)
        end subroutine
        pure subroutine cnn_gradient_f64(p, x, v, y, dp) bind(C)
            import :: c_double
            real(c_double), intent(in) :: p(*), x(*), v(*)
            real(c_double), intent(out) :: y(*)
            real(c_double), intent(inout) :: dp(*)
        end subroutine
    end interface

    type :: cnn_network_f32
        integer :: inputs = 0, outputs = 0
        procedure(cnn_value_f32), pointer, nopass :: value => null()
    contains
        procedure :: predict => predict_f32
    end type

    type :: cnn_trainable_f32
        integer :: inputs = 0, outputs = 0
        real(c_float), allocatable :: p(:)
        procedure(cnn_value_p_f32), pointer, nopass :: value => null()
        procedure(cnn_gradient_f32), pointer, nopass :: gradient => null()
    contains
        procedure :: predict => predict_p_f32
        procedure :: loss_and_grad => loss_and_grad_f32
    end type

    type :: cnn_network_f64
        integer :: inputs = 0, outputs = 0
        procedure(cnn_value_f64), pointer, nopass :: value => null()
    contains
        procedure :: predict => predict_f64
    end type

    type :: cnn_trainable_f64
        integer :: inputs = 0, outputs = 0
        real(c_double), allocatable :: p(:)
        procedure(cnn_value_p_f64), pointer, nopass :: value => null()
        procedure(cnn_gradient_f64), pointer, nopass :: gradient => null()
    contains
        procedure :: predict => predict_p_f64
        procedure :: loss_and_grad => loss_and_grad_f64
    end type

contains

    pure subroutine predict_f32(self, x, y)
        class(cnn_network_f32), intent(in) :: self
        real(c_float), intent(in), contiguous :: x(:, :)
        real(c_float), intent(out), contiguous :: y(:, :)
        integer :: i
        do i = 1, size(x, 2)
            call self%value(x(:, i), y(:, i))
        end do
    end subroutine

    pure subroutine predict_p_f32(self, x, y)
        class(cnn_trainable_f32), intent(in) :: self
        real(c_float), intent(in), contiguous :: x(:, :)
        real(c_float), intent(out), contiguous :: y(:, :)
        integer :: i
        do i = 1, size(x, 2)
            call self%value(self%p, x(:, i), y(:, i))
        end do
    end subroutine

    pure subroutine loss_and_grad_f32(self, x, target, loss, grad)
        class(cnn_trainable_f32), intent(in) :: self
        real(c_float), intent(in), contiguous :: x(:, :), target(:, :)
        real(c_float), intent(out) :: loss
        real(c_float), intent(out), contiguous :: grad(:)
        real(c_float) :: y(self%outputs), v(self%outputs)
        integer :: i
        loss = 0
        grad = 0
        do i = 1, size(x, 2)
            call self%value(self%p, x(:, i), y)
            v = (y - target(:, i)) / real(size(target), c_float)
            loss = loss + sum(v * (y - target(:, i)))
            call self%gradient(self%p, x(:, i), 2 * v, y, grad)
        end do
    end subroutine

    pure subroutine predict_f64(self, x, y)
        class(cnn_network_f64), intent(in) :: self
        real(c_double), intent(in), contiguous :: x(:, :)
        real(c_double), intent(out), contiguous :: y(:, :)
        integer :: i
        do i = 1, size(x, 2)
            call self%value(x(:, i), y(:, i))
        end do
    end subroutine

    pure subroutine predict_p_f64(self, x, y)
        class(cnn_trainable_f64), intent(in) :: self
        real(c_double), intent(in), contiguous :: x(:, :)
        real(c_double), intent(out), contiguous :: y(:, :)
        integer :: i
        do i = 1, size(x, 2)
            call self%value(self%p, x(:, i), y(:, i))
        end do
    end subroutine

    pure subroutine loss_and_grad_f64(self, x, target, loss, grad)
        class(cnn_trainable_f64), intent(in) :: self
        real(c_double), intent(in), contiguous :: x(:, :), target(:, :)
        real(c_double), intent(out) :: loss
        real(c_double), intent(out), contiguous :: grad(:)
        real(c_double) :: y(self%outputs), v(self%outputs)
        integer :: i
        loss = 0
        grad = 0
        do i = 1, size(x, 2)
            call self%value(self%p, x(:, i), y)
            v = (y - target(:, i)) / real(size(target), c_double)
            loss = loss + sum(v * (y - target(:, i)))
            call self%gradient(self%p, x(:, i), 2 * v, y, grad)
        end do
    end subroutine

end module
